"""Every check returns what it accepts, and says what it expected and found otherwise."""

import doctest
import math
import sys
from fractions import Fraction

import numpy as np
import pytest

from privacy import validation
from privacy.errors import InvalidRequest


@pytest.mark.parametrize("value", [1, 0.5, np.float32(2.0), np.int64(3), Fraction(1, 2)])
def test_positive_numbers_are_returned_as_float(value):
    number = validation.positive_number("it", value)
    assert type(number) is float
    assert number == float(value)


@pytest.mark.parametrize(
    "value",
    [0, -1.0, math.nan, math.inf, sys.float_info.min / 2, True, "1", None, 10**400, np.bool_(True)],
)
def test_other_values_are_not_positive_numbers(value):
    with pytest.raises(InvalidRequest, match="it: expected a positive"):
        validation.positive_number("it", value)


def test_a_probability_may_be_one_and_an_open_one_may_not():
    assert validation.probability("q", 1) == 1.0
    with pytest.raises(InvalidRequest, match=r"q: expected a probability in \(0, 1\], found 1.5"):
        validation.probability("q", 1.5)
    with pytest.raises(InvalidRequest, match="delta: expected a number between"):
        validation.open_probability("delta", 1)


@pytest.mark.parametrize("value", [1.0, True, "1", None, np.float64(1)])
def test_integers_are_neither_floats_nor_booleans(value):
    for check in (validation.positive_int, validation.whole_number, validation.uint64):
        with pytest.raises(InvalidRequest, match="n: expected a whole number, found"):
            check("n", value)


def test_integers_keep_within_their_ranges():
    assert type(validation.positive_int("n", np.int64(1))) is int
    assert validation.positive_int("n", 2**53) == 2**53
    assert validation.whole_number("n", 0) == 0
    assert validation.uint64("n", 2**64 - 1) == 2**64 - 1
    for check, value in (
        (validation.positive_int, 0),
        (validation.positive_int, 2**53 + 1),
        (validation.whole_number, -1),
        (validation.uint64, -1),
        (validation.uint64, 2**64),
        (validation.positive_int, 10**5000),  # more digits than Python writes
    ):
        with pytest.raises(InvalidRequest, match="n: expected a whole number from"):
            check("n", value)


@pytest.mark.parametrize("value", [b"short", bytes(33), "x" * 32, bytearray(32)])
def test_a_key_is_32_bytes_and_never_shown(value):
    with pytest.raises(InvalidRequest, match="key: expected 32 bytes") as refused:
        validation.key_bytes(value)
    assert "short" not in str(refused.value)
    assert "xxx" not in str(refused.value)


def test_the_examples_in_the_docstrings_hold():
    failed, tried = doctest.testmod(validation, optionflags=doctest.ELLIPSIS)
    assert tried
    assert not failed
