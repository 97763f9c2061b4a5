"""Numbers in words."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.text import detection, epsilon, left, number, percent, percent_up, power


@given(st.floats(min_value=1e-5, max_value=1e6), st.integers(1, 6))
def test_epsilon_is_never_rounded_down(value: float, digits: int) -> None:
    shown = Fraction(epsilon(value, digits))
    assert shown >= Fraction(repr(value))
    assert shown - Fraction(repr(value)) < Fraction(1, 10**digits)


@given(st.floats(min_value=0, max_value=1e6))
def test_what_is_left_is_never_rounded_up(value: float) -> None:
    assert Fraction(repr(value)) - Fraction(1, 100) < Fraction(left(value)) <= Fraction(repr(value))


@pytest.mark.parametrize(
    ("value", "text"),
    [(9.9959, "10.00"), (1.1, "1.10"), (10.0, "10.00"), (0.0, "0.00"), (0.0031, "0.0031")],
)
def test_epsilon(value: float, text: str) -> None:
    assert epsilon(value) == text


def test_infinite_epsilon() -> None:
    assert epsilon(math.inf) == "∞"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "10⁻⁵"),
        (1.5e-6, "1.5 × 10⁻⁶"),
        (1.2341e-4, "1.24 × 10⁻⁴"),
        (9.999e-4, "10⁻³"),
        (0.25, "0.25"),
        (0.0, "0"),
    ],
)
def test_power(value: float, text: str) -> None:
    assert power(value) == text


def test_number_and_percent() -> None:
    assert number(60000) == "60,000"
    assert number(1 / 15) == "0.0666667"
    assert number("zero-out") == "zero-out"
    assert percent(0.9416) == "94.2\u202f%"
    assert percent_up(0.99991) == "100.00\u202f%"
    assert percent_up(0.1234) == "12.34\u202f%"
    assert percent(1.0) == "100.0\u202f%"


@pytest.mark.parametrize("a", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("eps", [0.0, 0.2, 1.0, 10.0])
def test_detection_of_pure_dp_is_what_randomised_response_reaches(eps: float, a: float) -> None:
    # Randomised response tells the truth with p = e^ε/(1+e^ε). Its best tests lie on the lines
    # from (0, 0) over (1−p, p) to (1, 1), and no ε-DP answer does better: the bound is tight.
    p = math.exp(eps) / (1 + math.exp(eps))
    best = float(np.interp(a, [0, 1 - p, 1], [0, p, 1]))
    assert detection(eps, 0.0, a) == pytest.approx(best, abs=1e-12)


def test_detection_without_privacy_and_with_all_of_it() -> None:
    assert detection(math.inf, 0.0, 0.01) == 1.0
    assert detection(0.0, 0.0, 0.01) == pytest.approx(0.01)
    assert detection(0.0, 1e-5, 0.01) == pytest.approx(0.01001)
