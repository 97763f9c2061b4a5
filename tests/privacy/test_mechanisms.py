"""Mechanisms: what is refused, and that a record says everything and nothing else."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import InvalidRequest
from privacy.mechanisms import (
    MECHANISMS,
    DiscreteLaplace,
    Gaussian,
    SubsampledGaussian,
    from_record,
)
from privacy.validation import MAX_STEPS

normal = st.floats(sys.float_info.min, sys.float_info.max, allow_subnormal=False)
probabilities = st.floats(sys.float_info.min, 1.0, allow_subnormal=False)
counts = st.integers(1, MAX_STEPS)
mechanisms = st.one_of(
    st.builds(SubsampledGaussian, probabilities, normal, counts),
    st.builds(Gaussian, normal, counts),
    st.builds(DiscreteLaplace, normal, counts),
)

BAD_NUMBERS = [
    math.nan,
    math.inf,
    -math.inf,
    0.0,
    -0.0,
    -1.0,
    0,
    5e-324,
    sys.float_info.min / 2,
    10**400,
    True,
    np.True_,
    "1",
    None,
    1j,
    np.array(1.0),
]
BAD_STEPS = [0, -1, True, np.True_, 1.0, np.float64(2), math.nan, "3", None, MAX_STEPS + 1]


@pytest.mark.parametrize("bad", BAD_NUMBERS, ids=repr)
def test_noise_multipliers_that_are_no_normal_number_are_refused(bad):
    with pytest.raises(InvalidRequest, match="noise_multiplier"):
        Gaussian(bad)
    with pytest.raises(InvalidRequest, match="noise_multiplier"):
        DiscreteLaplace(bad)
    with pytest.raises(InvalidRequest, match="noise_multiplier"):
        SubsampledGaussian(0.1, bad, 1)


@pytest.mark.parametrize("bad", [*BAD_NUMBERS, 1.0000000000000002, 2], ids=repr)
def test_sampling_probabilities_outside_0_to_1_are_refused(bad):
    with pytest.raises(InvalidRequest, match="sampling_probability"):
        SubsampledGaussian(bad, 1.0, 1)


@pytest.mark.parametrize("bad", BAD_STEPS, ids=repr)
def test_steps_that_are_no_count_are_refused(bad):
    with pytest.raises(InvalidRequest, match="steps"):
        SubsampledGaussian(0.1, 1.0, bad)
    with pytest.raises(InvalidRequest, match="steps"):
        Gaussian(1.0, bad)
    with pytest.raises(InvalidRequest, match="steps"):
        DiscreteLaplace(1.0, bad)
    with pytest.raises(InvalidRequest, match="steps"):
        Gaussian(1.0).with_steps(bad)


def test_the_edges_are_allowed():
    least = sys.float_info.min
    assert SubsampledGaussian(1.0, least, 1).noise_multiplier == least
    assert SubsampledGaussian(least, 1e300, MAX_STEPS).steps == MAX_STEPS


def test_a_mechanism_is_frozen_and_holds_plain_numbers():
    mechanism = SubsampledGaussian(np.float32(0.5), 2, np.int64(3))
    assert mechanism == SubsampledGaussian(0.5, 2.0, 3)
    assert [type(v) for v in dataclasses.astuple(mechanism)] == [float, float, int]
    with pytest.raises(dataclasses.FrozenInstanceError):
        mechanism.steps = 4
    assert len({mechanism, SubsampledGaussian(0.5, 2.0, 3)}) == 1


def test_with_steps_changes_the_steps_only():
    mechanism = SubsampledGaussian(0.25, 1.5, 10)
    assert mechanism.with_steps(7) == SubsampledGaussian(0.25, 1.5, 7)
    assert mechanism.steps == 10
    assert Gaussian(1.5).with_steps(7) == Gaussian(1.5, 7)
    assert DiscreteLaplace(1.5).with_steps(7) == DiscreteLaplace(1.5, 7)


def test_records_are_the_raw_parameters():
    assert SubsampledGaussian(0.25, 1.5, 10).to_record() == {
        "type": "subsampled_gaussian",
        "sampling_probability": 0.25,
        "noise_multiplier": 1.5,
        "steps": 10,
    }
    assert Gaussian(1.5).to_record() == {"type": "gaussian", "noise_multiplier": 1.5, "steps": 1}
    assert DiscreteLaplace(1.5).to_record() == {
        "type": "discrete_laplace",
        "noise_multiplier": 1.5,
        "steps": 1,
    }


def test_equal_parameters_do_not_make_equal_mechanisms():
    assert Gaussian(1.5, 2) != DiscreteLaplace(1.5, 2)


@given(mechanisms)
def test_a_record_survives_json(mechanism):
    assert from_record(json.loads(json.dumps(mechanism.to_record()))) == mechanism


def test_the_registry_names_every_mechanism_by_its_record_type():
    assert all(name == cls.record_type for name, cls in MECHANISMS.items())
    # The order is that in which costs are added up: a new one goes to the end.
    assert list(MECHANISMS.values()) == [SubsampledGaussian, Gaussian, DiscreteLaplace]


GOOD = Gaussian(1.5).to_record()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, "'type'"),
        ({**GOOD, "type": "laplace"}, "laplace"),
        ({**GOOD, "type": ["gaussian"]}, "'type'"),
        ({"type": "gaussian", "noise_multiplier": 1.5}, r"missing \['steps'\]"),
        ({**GOOD, "sampling_probability": 1.0}, r"unknown \['sampling_probability'\]"),
        ({**GOOD, 3: 4}, r"unknown \['3'\]"),
        ({**GOOD, "steps": 1.0}, "steps"),
        ({**GOOD, "noise_multiplier": "1.5"}, "noise_multiplier"),
        ([("type", "gaussian")], "mapping"),
        (None, "mapping"),
    ],
)
def test_records_with_anything_wrong_are_refused(record, said):
    with pytest.raises(InvalidRequest, match=said):
        from_record(record)
