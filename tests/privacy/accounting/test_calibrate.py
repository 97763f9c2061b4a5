"""Noise for a target: the paper's, to the last digit, and less of it under tight accountants."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import accountant
from privacy.accounting.calibrate import noise_multiplier
from privacy.errors import InvalidRequest
from privacy.mechanisms import DiscreteLaplace, Gaussian, SubsampledGaussian


@pytest.mark.parametrize(
    ("target", "delta", "q", "steps", "sigma"),
    [
        (0.2, 1e-5, 1 / 15, 4500, 82.5),
        (1, 1e-5, 1 / 15, 4500, 18.28125),
        (10, 1e-5, 1 / 15, 4500, 2.48779296875),
        (1, 1e-6, 1 / 80, 24_000, 8.828125),
        (10, 1e-6, 1 / 80, 24_000, 1.3037109375),
    ],
)
def test_table_4_9_of_the_paper(target, delta, q, steps, sigma):
    assert noise_multiplier(target, delta, q, steps, tolerance=0.01) == sigma


@settings(max_examples=3, deadline=None, derandomize=True)
@given(st.floats(0.3, 12), st.floats(0.01, 1.0), st.integers(1, 500))
def test_the_target_is_kept_and_nearly_used_up(target, q, steps):
    sigma = noise_multiplier(target, 1e-5, q, steps)
    spent = accountant("rdp").epsilon([SubsampledGaussian(q, sigma, steps)], 1e-5)
    assert target * 0.999 <= spent <= target


# design.md: about 17.03 and 2.357 under an accountant's coarser setting; 18.28 and 2.488 by RDP.
@pytest.mark.parametrize(
    ("name", "target", "low", "high", "tolerance"),
    [
        ("pld", 1, 16.6, 17.03, 0.01),
        ("prv", 1, 16.7, 17.03, 0.01),
        ("pld", 10, 2.345, 2.37, 0.1),
        ("prv", 10, 2.345, 2.43, 0.5),
    ],
)
def test_tight_accountants_need_less_noise(name, target, low, high, tolerance):
    sigma = noise_multiplier(target, 1e-5, 1 / 15, 4500, accountant=name, tolerance=tolerance)
    assert low < sigma < high
    plan = [SubsampledGaussian(1 / 15, sigma, 4500)]
    assert target - tolerance <= accountant(name).epsilon(plan, 1e-5) <= target


@pytest.mark.parametrize("name", ["rdp", "pld", "prv"])
def test_what_is_fixed_is_paid_from_the_same_target(name):
    fixed = [Gaussian(4.0), SubsampledGaussian(0.1, 4.0, 5), DiscreteLaplace(10.0, 3)]
    alone = noise_multiplier(2.0, 1e-5, 0.1, 50, accountant="rdp", tolerance=0.05)
    beside = noise_multiplier(2.0, 1e-5, 0.1, 50, fixed, accountant=name, tolerance=0.1)
    assert beside > 1.05 * alone
    spent = accountant(name).epsilon([*fixed, SubsampledGaussian(0.1, beside, 50)], 1e-5)
    assert 1.9 <= spent <= 2.0


def test_a_target_that_the_fixed_mechanisms_exceed_is_refused():
    with pytest.raises(InvalidRequest, match="fixed mechanisms alone cost"):
        noise_multiplier(1.0, 1e-5, 0.1, 50, fixed=[Gaussian(1.0)])


def test_a_target_out_of_reach_is_refused():
    with pytest.raises(InvalidRequest, match="cannot be kept"):
        noise_multiplier(1e-4, 1e-9, 1.0, 10**9)


def test_a_target_that_fixed_mechanisms_all_but_use_up_is_refused_or_kept():
    fixed = [Gaussian(5.0)]
    spent = accountant("rdp").epsilon(fixed, 1e-5)
    sigma = noise_multiplier(spent * 1.001, 1e-5, 0.1, 10, fixed)
    plan = [*fixed, SubsampledGaussian(0.1, sigma, 10)]
    assert spent < accountant("rdp").epsilon(plan, 1e-5) <= spent * 1.001
    with pytest.raises(InvalidRequest):
        noise_multiplier(spent, 1e-5, 0.1, 10, fixed)


def test_a_tolerance_below_the_grain_of_doubles_ends():
    sigma = noise_multiplier(1.0, 1e-5, 1.0, 1, tolerance=1e-300)
    assert accountant("rdp").epsilon([Gaussian(sigma)], 1e-5) == pytest.approx(1.0, abs=1e-6)


BAD = [0.0, -1.0, math.nan, math.inf, True, "1"]


@pytest.mark.parametrize("bad", BAD, ids=repr)
@pytest.mark.parametrize(
    "field", ["target_epsilon", "delta", "sampling_probability", "steps", "tolerance"]
)
def test_bad_values_are_refused_by_name(field, bad):
    good = {"target_epsilon": 1.0, "delta": 1e-5, "sampling_probability": 0.1, "steps": 5}
    if field == "steps" and bad is True:
        bad = 0
    with pytest.raises(InvalidRequest, match=field):
        noise_multiplier(**{**good, field: bad})


def test_unknown_accountants_are_refused():
    with pytest.raises(InvalidRequest, match="accountant"):
        noise_multiplier(1.0, 1e-5, 0.1, 5, accountant="gdp")
