import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.audit.one_run import detectable, epsilon_lower_bound, p_value
from privacy.errors import InvalidRequest

DELTA, BETA = 1e-5, 0.05

epsilons = st.floats(0, 8)
deltas = st.floats(0, 0.1)


@st.composite
def guesses(draw, most=60):
    m = draw(st.integers(1, most))
    r = draw(st.integers(0, m))
    return m, r, draw(st.integers(0, r))


def naive_p_value(m, r, v, epsilon, delta):
    """The theorem word for word, in 40 digits."""
    with mpmath.workdps(40):
        p = mpmath.exp(epsilon) / (1 + mpmath.exp(epsilon))

        def f(j):
            terms = range(max(j, 0), r + 1)
            return mpmath.fsum(mpmath.binomial(r, k) * p**k * (1 - p) ** (r - k) for k in terms)

        gains = [(f(v - i) - f(v)) / i for i in range(1, v + 1)]
        return float(min(1, f(v) + 2 * m * mpmath.mpf(delta) * max([*gains, mpmath.mpf(0)])))


@pytest.mark.parametrize(
    ("m", "r", "v", "expected"),
    [
        (1000, 100, 100, 3.465),
        (1000, 200, 190, 2.394),
        (1000, 1000, 600, 0.297),
        (5000, 500, 500, 4.978),
    ],
)
def test_values_of_the_paper(m, r, v, expected):
    assert epsilon_lower_bound(m, r, v, DELTA, BETA) == pytest.approx(expected, abs=5e-4)


@given(guesses(), epsilons, deltas)
def test_p_value_is_the_theorems(guess, epsilon, delta):
    expected = naive_p_value(*guess, epsilon, delta)
    assert p_value(*guess, epsilon, delta) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@given(guesses(), epsilons, epsilons, deltas)
def test_a_larger_epsilon_is_harder_to_refute(guess, one, other, delta):
    low, high = sorted((one, other))
    assert p_value(*guess, low, delta) <= p_value(*guess, high, delta) + 1e-12


@given(guesses(300), deltas, st.floats(1e-6, 0.5))
def test_the_bound_is_where_refuting_ends(guess, delta, beta):
    bound = epsilon_lower_bound(*guess, delta, beta)
    if bound > 0:
        assert p_value(*guess, bound, delta) <= beta
    assert p_value(*guess, bound + 1e-6, delta) > beta


@given(guesses(300), deltas)
def test_more_right_guesses_show_no_less(guess, delta):
    m, r, v = guess
    bounds = [epsilon_lower_bound(m, r, v, delta, BETA) for v in range(v, r + 1)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == detectable(m, r, delta, BETA)


@given(guesses(300), deltas)
def test_a_larger_delta_shows_no_more(guess, delta):
    assert epsilon_lower_bound(*guess, delta, BETA) <= epsilon_lower_bound(*guess, 0.0, BETA)


def test_without_delta_it_is_the_binomial_bound():
    """v = r: p^r = beta, so ε = ln(p / (1 - p)) with p = beta^(1/r)."""
    p = BETA ** (1 / 40)
    assert detectable(40, 40, 0.0, BETA) == pytest.approx(math.log(p / (1 - p)), abs=1e-8)


def test_coverage():
    """The randomised response that the theorem is tight for, audited many times."""
    rng, epsilon, m, beta = np.random.default_rng(0), 1.0, 300, 0.2
    right = rng.binomial(m, math.exp(epsilon) / (1 + math.exp(epsilon)), 2000)
    bounds = {int(v): epsilon_lower_bound(m, m, int(v), 0.0, beta) for v in np.unique(right)}
    above = np.mean([bounds[int(v)] > epsilon for v in right])
    assert 0.1 < above < beta + 0.03


def test_coins_show_nothing():
    assert epsilon_lower_bound(1000, 1000, 500, DELTA, BETA) == 0
    assert epsilon_lower_bound(1000, 0, 0, DELTA, BETA) == 0
    assert detectable(10, 10, 0.5, BETA) == 0


@pytest.mark.parametrize(
    "counts",
    [(0, 0, 0), (10, 11, 5), (10, 5, 6), (10, 5, -1), (10.0, 5, 5), (10, True, 1), (10, -1, -1)],
)
def test_counts_that_make_no_sense(counts):
    with pytest.raises(InvalidRequest):
        p_value(*counts, 1.0, DELTA)
    with pytest.raises(InvalidRequest):
        epsilon_lower_bound(*counts, DELTA, BETA)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_numbers_that_make_no_sense(bad):
    for request in (
        lambda: p_value(10, 5, 5, bad, DELTA),
        lambda: p_value(10, 5, 5, 1.0, bad),
        lambda: epsilon_lower_bound(10, 5, 5, bad, BETA),
        lambda: epsilon_lower_bound(10, 5, 5, DELTA, bad),
        lambda: detectable(10, 5, DELTA, 1.0),
    ):
        with pytest.raises(InvalidRequest):
            request()
