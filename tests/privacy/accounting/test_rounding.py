"""A printed epsilon may never be smaller than the one it stands for."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting.base import round_up
from privacy.errors import InvalidRequest


@given(st.floats(0, 1e308), st.integers(0, 15))
def test_never_understates_and_by_less_than_a_unit(epsilon, digits):
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
def test_what_is_no_epsilon_is_refused(bad):
    with pytest.raises(InvalidRequest, match="epsilon"):
        round_up(bad)


@pytest.mark.parametrize("digits", [-1, 16])
def test_digits_out_of_range_are_refused(digits):
    with pytest.raises(InvalidRequest, match="digits"):
        round_up(1.0, digits)
