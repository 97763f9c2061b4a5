import dataclasses
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.accounting import accountant
from privacy.accounting.base import round_up
from privacy.accounting.rdp import RDPFilter, curve
from privacy.budget import Component
from privacy.errors import BudgetRefused, IntegrityBroken, InvalidRequest
from privacy.ledger import Kind
from privacy.mechanisms import MECHANISMS, Gaussian, SubsampledGaussian

DELTA = 1e-5


def test_what_is_written_down(budget, reserve, content):
    mechanism = SubsampledGaussian(0.25, 1.9, 400)
    asked = [Component("train", mechanism), Component("warm", Gaussian(5.0))]
    budget.declare("big", 100.0, DELTA)
    held = reserve(dataset="big", plan=asked, void=True, records_per_unit=3, spec_sha256="a" * 64)
    row = next(r for r in budget.ledger.rows(reservation=held.id))
    assert row.head == held.head == budget.ledger.head()
    assert row.content == {
        "run": "run-1",
        "fingerprint": content().fingerprint,
        "records": 1500,
        "unit": "one image",
        "records_per_unit": 3,
        "relation": "add/remove with zero-out",
        "void": True,
        "accountant": "rdp",
        "spec": "a" * 64,
        "plan": [
            {
                "name": "train",
                "mechanism": {
                    "type": "subsampled_gaussian",
                    "sampling_probability": 0.25,
                    "noise_multiplier": 1.9,
                    "steps": 400,
                },
            },
            {
                "name": "warm",
                "mechanism": {"type": "gaussian", "noise_multiplier": 5.0, "steps": 1},
            },
        ],
    }
    assert held.plan == tuple(asked)
    assert budget.reservation(held.id) == held


def test_undeclared_names_the_command(budget, reserve, unchanged):
    with pytest.raises(BudgetRefused, match="umbra budget declare mnist --epsilon E --delta D"):
        reserve(dataset="mnist")


@pytest.mark.parametrize("records", [100_000, 100_001, 10**9])
def test_delta_is_below_one_over_n(reserve, content, unchanged, records):
    with pytest.raises(BudgetRefused, match="below 1/N"):
        reserve(content=content(records=records))


def test_delta_just_below_one_over_n(reserve, content):
    reserve(content=content(records=99_999))


def test_content_under_another_name_is_refused(budget, reserve):
    reserve()
    budget.declare("copy", 3.0, DELTA)
    with pytest.raises(BudgetRefused, match="content of the data set 'digits'"):
        reserve("k2", dataset="copy")
    assert len(list(budget.ledger.rows(kind=Kind.PARTITION))) == 1


def test_other_content_under_the_name_is_refused(reserve, content):
    reserve()
    with pytest.raises(BudgetRefused, match="stands for other content"):
        reserve("k2", content=content("changed"))


def test_another_n_for_the_same_content_is_refused(reserve, content):
    reserve()
    with pytest.raises(InvalidRequest, match="N=1500"):
        reserve("k2", content=content(records=1499))


def test_a_refused_plan_binds_nothing(reserve, plan, unchanged):
    with pytest.raises(BudgetRefused):
        reserve(plan=plan(0.1))


def test_refusal_says_asked_and_left_rounded_up(budget, begun, reserve, plan, epsilon):
    held = begun(plan=plan(10.0, 20))
    budget.charge(held.id, "train", 20, 1, "c")
    budget.settle(held.id)
    with pytest.raises(BudgetRefused) as caught:
        reserve("k2", plan=plan(3.0, 4))
    text = str(caught.value)
    assert f"asks ε={epsilon(Gaussian(3.0, 4))}" in text
    assert f"would be {epsilon(Gaussian(10.0, 20), Gaussian(3.0, 4))}" in text
    assert f"{math.floor((3 - epsilon(Gaussian(10.0, 20))) * 1e4) / 1e4} is left" in text


def test_open_reservations_count_in_full_and_settled_ones_by_charges(budget, begun, reserve, plan):
    first = begun(plan=plan(10.0, 40))
    with pytest.raises(BudgetRefused, match="open reservations of: run-1"):
        reserve("k2", plan=plan(10.0, 40))
    budget.charge(first.id, "train", 10, 1, "c")
    budget.settle(first.id)
    reserve("k2", plan=plan(10.0, 30))
    with pytest.raises(BudgetRefused):
        reserve("k3", plan=plan(10.0, 10))


def test_budgets_of_data_sets_are_apart(budget, reserve, plan, content):
    budget.declare("other", 3.0, DELTA)
    reserve(plan=plan(10.0, 40))
    reserve("k2", dataset="other", content=content("other"), plan=plan(10.0, 40))
    assert budget.odometer("other").committed == budget.odometer("digits").committed


def test_the_same_key_returns_the_first_reservation(budget, reserve, plan):
    first = reserve(plan=plan(10.0, 40))
    assert reserve(plan=plan(10.0, 40)) == first
    budget.settle(first.id)
    assert reserve(plan=plan(10.0, 40)) == first
    with pytest.raises(InvalidRequest, match="plan differ"):
        reserve(plan=plan(10.0, 39))


def test_a_broken_ledger_grants_nothing(budget, reserve, plan, monkeypatch):
    monkeypatch.setattr("privacy.ledger.store.replay", lambda *_, **__: iter(["a broken row"]))
    with pytest.raises(IntegrityBroken, match="nothing is granted"):
        reserve()
    with pytest.raises(IntegrityBroken, match="nothing is granted"):
        budget.require_admissible("digits", plan())


@pytest.mark.parametrize("kind", MECHANISMS)
def test_every_mechanism_may_be_planned(budget, reserve, kind):
    """Mechanisms of all kinds in one plan; what they cost together is the accountant's sum."""
    values = {"sampling_probability": 0.01, "noise_multiplier": 40.0, "steps": 3}
    mechanism = MECHANISMS[kind]
    asked = mechanism(**{f.name: values[f.name] for f in dataclasses.fields(mechanism)})
    mixed = [Component("one", asked), Component("two", Gaussian(9.0)), Component("three", asked)]
    held = reserve(plan=mixed)
    assert budget.reservation(held.id).plan == tuple(mixed)
    together = accountant("rdp").epsilon([part.mechanism for part in mixed], DELTA)
    assert budget.odometer("digits").committed == round_up(together)


class _Cheap(Gaussian):
    """Says less than it does."""

    def to_record(self):
        return {"type": "gaussian", "noise_multiplier": 1e6, "steps": self.steps}


@pytest.mark.parametrize(
    "mechanism", [None, 1.0, {"type": "gaussian"}, "gaussian", Gaussian, _Cheap(0.1)]
)
def test_a_component_needs_a_mechanism(mechanism):
    with pytest.raises(InvalidRequest, match="mechanism"):
        Component("train", mechanism)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    lambda n: Gaussian(4.0, n),
                    lambda n: Gaussian(12.0, n),
                    lambda n: SubsampledGaussian(0.1, 1.5, 20 * n),
                    lambda n: SubsampledGaussian(0.02, 0.9, 50 * n),
                ]
            ),
            st.integers(1, 30),
            st.integers(0, 30),
        ),
        max_size=6,
    ),
    seed=st.integers(0, 2**60),
)
def test_never_more_than_declared(budget, reserve, content, moves, seed):
    """Whatever is asked, a naive sum over what was granted stays within the budget.

    It is granted while the sum stays within it at the order of the first plan, and only then.
    """
    name = f"set-{seed}-{len(list(budget.ledger.rows(kind=Kind.DECLARE)))}"
    budget.declare(name, 2.0, DELTA)
    granted, rdp, bound, at = [], accountant("rdp"), RDPFilter(2.0, DELTA).bound, None
    for i, (mechanism, steps, charged) in enumerate(moves):
        asked = {"dataset": name, "content": content(name)}
        asked["plan"] = [Component("train", mechanism(steps))]
        best = np.argmin(curve([mechanism(steps)]) / bound) if at is None else at
        fits = curve([*granted, mechanism(steps)])[best] <= bound[best]
        assert not fits or rdp.epsilon([*granted, mechanism(steps)], DELTA) <= 2.0
        try:
            held = reserve(f"{name}-{i}", **asked)
        except BudgetRefused:
            assert not fits
            continue
        assert fits
        at = best
        taken = min(charged, mechanism(steps).steps)
        if taken:
            budget.charge(held.id, "train", taken, budget.begin_attempt(held.id, "a"), "c")
            granted.append(mechanism(steps).with_steps(taken))
        budget.settle(held.id)
    assert budget.odometer(name).spent == (round_up(rdp.epsilon(granted, DELTA)) if granted else 0)
