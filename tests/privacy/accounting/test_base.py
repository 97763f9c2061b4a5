"""The canonical form in which mechanisms reach the libraries, and how an epsilon is rounded."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting.base import MAX_NOISE, Steps, collapse, merge_gaussians, round_up
from privacy.errors import InvalidRequest
from privacy.mechanisms import DiscreteLaplace, Gaussian, SubsampledGaussian
from privacy.validation import MAX_STEPS


def test_equal_steps_are_counted_together_and_sorted():
    mechanisms = [
        DiscreteLaplace(2.0, 3),
        Gaussian(2.0, 3),
        SubsampledGaussian(0.5, 1.0, 4),
        SubsampledGaussian(1.0, 2.0, 1),
        DiscreteLaplace(0.5),
        SubsampledGaussian(0.5, 1.0, 6),
        SubsampledGaussian(0.1, 9.0, 1),
    ]
    expected = [
        Steps(SubsampledGaussian(0.1, 9.0, 1), 1),
        Steps(SubsampledGaussian(0.5, 1.0, 1), 10),
        Steps(Gaussian(2.0), 4),
        Steps(DiscreteLaplace(0.5), 1),
        Steps(DiscreteLaplace(2.0), 3),
    ]
    assert collapse(mechanisms) == expected
    assert collapse(mechanisms[::-1]) == expected


def test_the_sum_of_steps_has_no_end():
    most = DiscreteLaplace(1e300, MAX_STEPS)
    assert collapse([most, most]) == [Steps(DiscreteLaplace(MAX_NOISE), 2 * MAX_STEPS)]


@pytest.mark.parametrize("bad", [None, "gaussian", Steps(Gaussian(1.0), 1), Gaussian])
def test_what_is_no_mechanism_is_refused(bad):
    with pytest.raises(InvalidRequest, match="Expected a mechanism"):
        collapse([Gaussian(1.0), bad])


def test_noise_beyond_reason_is_counted_as_less():
    assert collapse([Gaussian(1e300)]) == [Steps(Gaussian(MAX_NOISE), 1)]


def test_gaussians_merge_by_their_precisions_and_others_stay():
    others = [Steps(SubsampledGaussian(0.5, 1.0, 1), 10), Steps(DiscreteLaplace(2.0), 3)]
    merged = merge_gaussians(
        [others[0], Steps(Gaussian(2.0), 3), Steps(Gaussian(5.0), 2), others[1]]
    )
    assert merged[:2] == others
    (one,) = merged[2:]
    assert one.number == 1
    assert math.isclose(one.step.noise_multiplier, (3 / 4 + 2 / 25) ** -0.5, rel_tol=1e-14)
    assert merge_gaussians(others) == others


@pytest.mark.parametrize("sigma", [1e-300, 1e300])
def test_merging_neither_overflows_nor_underflows(sigma):
    (merged,) = merge_gaussians([Steps(Gaussian(sigma), 1)])
    assert math.isclose(merged.step.noise_multiplier, sigma)


@given(st.floats(0, 1e308), st.integers(0, 15))
def test_a_rounded_epsilon_never_understates_and_by_less_than_a_unit(epsilon, digits):
    rounded = round_up(epsilon, digits)
    assert rounded >= epsilon
    exact = Fraction(epsilon) + Fraction(1, 10**digits)
    assert Fraction(rounded) <= exact * (1 + Fraction(1, 2**52))


@given(st.floats(0, 1e6))
def test_the_printed_text_does_not_understate_either(epsilon):
    assert Fraction(f"{round_up(epsilon):.4f}") >= Fraction(epsilon)


@pytest.mark.parametrize(
    ("epsilon", "digits", "expected"),
    [
        (0.0, 4, 0.0),
        (1.0, 4, 1.0),
        (9.99995, 4, 10.0),
        (0.99106, 4, 0.9911),
        (1e-9, 4, 0.0001),
        (0.25, 2, 0.25),
        (0.1, 4, 0.1001),  # the double is 0.1000000000000000055
        (0.3, 4, 0.3),  # the double is 0.299999999999999988
        (2.0000001, 0, 3.0),
        (1e308, 4, 1e308),
        (math.inf, 4, math.inf),
    ],
)
def test_known_roundings(epsilon, digits, expected):
    assert round_up(epsilon, digits) == expected


@pytest.mark.parametrize("bad", [math.nan, -1e-12, -math.inf])
def test_what_is_no_epsilon_is_not_rounded(bad):
    with pytest.raises(InvalidRequest, match="epsilon"):
        round_up(bad)


@pytest.mark.parametrize("digits", [-1, 16])
def test_digits_out_of_range_are_refused(digits):
    with pytest.raises(InvalidRequest, match="digits"):
        round_up(1.0, digits)
