"""Every public method, every argument: what makes no sense is refused and not a byte changes."""

import math
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.budget import Component
from privacy.budget.identity import Content
from privacy.errors import InvalidRequest
from privacy.ledger.records import Facts
from privacy.mechanisms import MECHANISMS, Gaussian, SubsampledGaussian, from_record

HUGE = 10**5000  # more digits than Python agrees to write
THINGS = [None, b"x", (), [], {}, {"a": 1}, object(), 1 + 2j, [[]], Gaussian(1.0)]
NUMBERS = [0, -1, -0.0, 0.5, math.nan, math.inf, -math.inf, 5e-324, -5e-324, True, False, 2**200]
TEXTS = ["", " ", "a b", " a", "a\n", "../x", "é", "\x00", "\ud800", "x" * 300, "a:b"]
SAME_NAMES = [Component("a", Gaussian(9.0)), Component("a", Gaussian(8.0))]

EDGES = {
    "name": [*THINGS, *NUMBERS, *TEXTS],
    "line": [*THINGS, *NUMBERS, "", "\n", "\x00", "\ud800", "x" * 257],
    "count": [*THINGS, *NUMBERS, *TEXTS, 1.0, 2**53 + 1, "1"],
    "epsilon": [*THINGS, 0, -1, math.nan, math.inf, -math.inf, 5e-324, True, "1", 10**400],
    "delta": [*THINGS, 0, -1, math.nan, math.inf, 5e-324, True, "1", 1.0, 1, 1.5],
    "flag": [*THINGS, *TEXTS, 0, 1, 1.0, math.nan],
    "plan": [*THINGS, *NUMBERS, *TEXTS, SAME_NAMES, [None], [Gaussian(1.0)], ["train"]],
    "content": [*THINGS, *NUMBERS, *TEXTS, "print-1"],
    "digest": [*THINGS, *NUMBERS, *TEXTS, "A" * 64, "a" * 63, "a" * 65],
    "spec": [*THINGS[1:], *NUMBERS, *TEXTS, "A" * 64],
    "words": [*THINGS, *NUMBERS, "", "\n", "\ud800", "x" * 257, "/home/me", "a\\b"],
    "used": [b"x", [1], ("train",), object(), 1, "train", {1: 1}, {"": 1}, {"none": 1}, {None: 1}]
    + [{"train": value} for value in [None, -1, 0.5, math.nan, True, "1", 2**54, [], {}]],
}
"""Values that must be refused, by what is asked for."""

dull = st.text().filter(lambda text: not text.isascii() or not text.isprintable())
RANDOM = {
    "name": dull,
    "line": dull.filter(lambda text: not text.isprintable()),
    "count": st.one_of(st.integers(max_value=0), st.integers(min_value=2**53 + 1), st.floats()),
    "epsilon": st.floats(max_value=2.2250738585072009e-308),
    "delta": st.one_of(st.floats(max_value=2.2250738585072009e-308), st.floats(min_value=1.0)),
    "flag": st.one_of(st.integers(), st.floats(), st.text()),
    "plan": st.lists(st.one_of(st.text(), st.floats(), st.none()), max_size=3),
    "content": st.text(),
    "digest": st.text(max_size=63),
    "spec": st.text(max_size=63),
    "words": st.text().map(lambda text: text + "/"),
    "used": st.dictionaries(dull, st.integers(1, 9), min_size=1),
}

BAD = {
    "declare": {"name": "name", "epsilon": "epsilon", "delta": "delta"},
    "quote": {"dataset": "name", "plan": "plan", "partition": "name"},
    "require_admissible": {"dataset": "name", "plan": "plan", "partition": "name"},
    "reserve": {
        "run_id": "name", "dataset": "name", "content": "content", "unit": "line",
        "partition": "name", "records_per_unit": "count", "plan": "plan", "void": "flag",
        "idempotency_key": "line", "spec_sha256": "spec",
    },
    "begin_attempt": {"reservation_id": "line", "idempotency_key": "line"},
    "charge": {
        "reservation_id": "line", "component": "name", "steps": "count", "attempt": "count",
        "idempotency_key": "line",
    },
    "settle": {"reservation_id": "line", "weights_sha256": "spec"},
    "record_export": {
        "reservation_id": "line", "manifest_sha256": "digest", "description": "words",
        "used": "used", "void_allowed": "flag",
    },
    "close": {"name": "name"},
    "accept_overlap": {"name": "name", "other": "name"},
    "reserved": {"idempotency_key": "line"},
    "reservation": {"reservation_id": "line"},
    "charged_steps": {"reservation_id": "line"},
    "settled_weights": {"reservation_id": "line"},
    "odometer": {"name": "name"},
    "attack": {"name": "name"},
    "history": {"name": "name"},
    "facts": {"name": "name"},
    "shown": {"reservation_id": "line"},
}  # fmt: skip
"""Every public method but `show`, with what each argument is."""


@pytest.fixture
def good(budget, begun, content, plan):
    """Arguments with which every method succeeds."""
    held = begun()
    budget.charge(held.id, "train", 2, 1, "paid")
    budget.declare("other", 1.0, 1e-5, Facts())
    return {
        "declare": {"name": "third", "epsilon": 1.0, "delta": 1e-5},
        "quote": {"dataset": "digits", "plan": plan(), "partition": "train"},
        "require_admissible": {"dataset": "digits", "plan": plan(), "partition": "train"},
        "reserve": {
            "run_id": "run-2", "dataset": "digits", "content": content(), "unit": "one image",
            "partition": "train", "records_per_unit": 1, "plan": plan(), "void": False,
            "idempotency_key": "k2", "spec_sha256": "a" * 64,
        },
        "begin_attempt": {"reservation_id": held.id, "idempotency_key": "b"},
        "charge": {
            "reservation_id": held.id, "component": "train", "steps": 1, "attempt": 1,
            "idempotency_key": "c",
        },
        "settle": {"reservation_id": held.id, "weights_sha256": "a" * 64},
        "record_export": {
            "reservation_id": held.id, "manifest_sha256": "a" * 64, "description": "images",
            "used": {"train": 1}, "void_allowed": False,
        },
        "close": {"name": "digits"},
        "accept_overlap": {"name": "digits", "other": "other"},
        "reserved": {"idempotency_key": "k2"},
        "reservation": {"reservation_id": held.id},
        "charged_steps": {"reservation_id": held.id},
        "settled_weights": {"reservation_id": held.id},
        "odometer": {"name": "digits"},
        "attack": {"name": "digits"},
        "history": {"name": "digits"},
        "facts": {"name": "other"},
        "shown": {"reservation_id": held.id},
    }  # fmt: skip


def public(budget):
    return {
        name for name in dir(budget) if not name.startswith("_") and callable(getattr(budget, name))
    }


def test_every_public_method_is_here(budget, good):
    assert public(budget) - {"show"} == set(BAD) == set(good)
    assert all(set(BAD[method]) == set(good[method]) for method in BAD)


@pytest.mark.parametrize("method", BAD)
def test_the_good_arguments_are_good(budget, good, method):
    getattr(budget, method)(**good[method])


@pytest.mark.parametrize("method", BAD)
def test_bad_requests_change_nothing(budget, good, stored, method):
    before = stored()
    for argument, kind in BAD[method].items():
        for value in EDGES[kind]:
            with pytest.raises(InvalidRequest):
                getattr(budget, method)(**{**good[method], argument: value})
    assert stored() == before


@pytest.mark.parametrize("method", BAD)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_bad_requests_change_nothing(budget, good, stored, method, data):
    argument = data.draw(st.sampled_from(sorted(BAD[method])))
    value = data.draw(RANDOM[BAD[method][argument]])
    before = stored()
    with pytest.raises(InvalidRequest):
        getattr(budget, method)(**{**good[method], argument: value})
    assert stored() == before


@pytest.mark.parametrize("method", BAD)
def test_numbers_too_long_to_write_change_nothing(budget, good, stored, method):
    before = stored()
    for argument in BAD[method]:
        for value in (HUGE, -HUGE):
            with pytest.raises(InvalidRequest):
                getattr(budget, method)(**{**good[method], argument: value})
    assert stored() == before


def test_numbers_too_long_to_write_make_no_parameter():
    for value in (HUGE, -HUGE):
        for make in (
            lambda v: Gaussian(9.0, v),
            lambda v: Gaussian(v, 1),
            lambda v: SubsampledGaussian(v, 9.0, 1),
            lambda v: Content("print-1", v, ("0" * 16,)),
        ):
            with pytest.raises(InvalidRequest):
                make(value)


@pytest.mark.parametrize(
    "method", ["begin_attempt", "charge", "settle", "record_export", "reservation", "charged_steps"]
)
def test_unknown_reservations_change_nothing(budget, good, stored, method):
    before = stored()
    with pytest.raises(InvalidRequest, match="no reservation"):
        getattr(budget, method)(**{**good[method], "reservation_id": "r-none"})
    assert stored() == before


@pytest.mark.parametrize("kind", MECHANISMS)
@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        ("sampling_probability", [0.0, -0.1, 1.0000001, math.nan, math.inf, 5e-324, True, "x"]),
        ("noise_multiplier", [0.0, -1.0, math.nan, math.inf, 5e-324, True, "x", None]),
        ("steps", [0, -1, 1.5, math.nan, True, "x", None, 2**53 + 1, 2**100]),
        ("type", ["magic", "", None, 1, True, []]),
    ],
)
def test_mechanisms_that_make_no_sense(budget, good, stored, kind, parameter, values):
    """However they come: by constructor, from a record, or unpickled and never checked."""
    whole = {"sampling_probability": 0.1, "noise_multiplier": 9.0, "steps": 3}
    mechanism = MECHANISMS[kind](**{n: whole[n] for n in MECHANISMS[kind].__match_args__})
    record = mechanism.to_record()
    if parameter not in record:
        return
    before = stored()
    for value in values:
        with pytest.raises(InvalidRequest):
            from_record({**record, parameter: value})
        if parameter == "type":
            continue
        smuggled = pickle.loads(pickle.dumps(mechanism))
        object.__setattr__(smuggled, parameter, value)
        for method in ("reserve", "quote", "require_admissible"):
            with pytest.raises(InvalidRequest):
                plan = [Component("train", smuggled)]
                getattr(budget, method)(**{**good[method], "plan": plan})
    assert stored() == before


SKETCHES = [
    *THINGS, *TEXTS, ("a",), ("0" * 15,), ("g" * 16,), ("A" * 16,), (1,), ("0" * 16, "0" * 16),
    ("1" * 16, "0" * 16), ["0" * 16], tuple(f"{i:016x}" for i in range(257)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("fingerprint", [*EDGES["line"], "a b", "é", "x" * 129]),
        ("records", EDGES["count"]),
        ("sketch", SKETCHES),
    ],
)
def test_contents_that_make_no_sense(field, values):
    good = {"fingerprint": "print-1", "records": 1500, "sketch": ("0" * 16,)}
    Content(**good)
    for value in values:
        with pytest.raises(InvalidRequest):
            Content(**{**good, field: value})


def test_a_sketch_holds_no_more_digests_than_there_are_records():
    with pytest.raises(InvalidRequest, match="1 to 1 different digests"):
        Content("print-1", 1, ("0" * 16, "1" * 16))


def test_a_plan_is_recorded_as_it_is_accounted(budget, good):
    asked = [Component("train", SubsampledGaussian(0.5, 30.0, 4))]
    held = budget.reserve(**{**good["reserve"], "plan": tuple(asked)})
    assert held.plan == budget.reservation(held.id).plan == tuple(asked)
