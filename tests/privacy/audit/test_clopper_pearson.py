import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.audit.distinguish import lower_bound, upper_bound
from privacy.errors import InvalidRequest

counts = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
errors = st.floats(1e-9, 0.4)


def at_least(k, n, p):
    """P[Bin(n, p) >= k], summed term by term in 50 digits."""
    with mpmath.workdps(50):
        p = mpmath.mpf(p)
        return float(
            mpmath.fsum(mpmath.binomial(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1))
        )


@given(counts, errors)
def test_bounds_solve_the_equations_of_the_tails(count, error):
    k, n = count
    if k > 0:
        assert at_least(k, n, float(lower_bound(k, n, error))) == pytest.approx(error, rel=1e-7)
    if k < n:
        above = float(upper_bound(k, n, error))
        assert 1 - at_least(k + 1, n, above) == pytest.approx(error, rel=1e-5, abs=1e-12)


@given(counts, errors)
def test_bounds_are_mirror_images_around_the_estimate(count, error):
    k, n = count
    low, high = float(lower_bound(k, n, error)), float(upper_bound(k, n, error))
    assert low == pytest.approx(1 - float(upper_bound(n - k, n, error)), abs=1e-9)
    assert 0 <= low <= k / n <= high <= 1


def test_nothing_and_everything():
    assert lower_bound(0, 5, 0.1) == 0
    assert upper_bound(5, 5, 0.1) == 1
    # In closed form: (1 - p)^n = error.
    assert upper_bound(0, 7, 0.05) == pytest.approx(1 - 0.05 ** (1 / 7))
    assert lower_bound(7, 7, 0.05) == pytest.approx(0.05 ** (1 / 7))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.97])
def test_the_truth_is_missed_no_more_often_than_said(p):
    """Exactly: the probability of the counts whose bound lies beyond p, not a simulation."""
    n, error = 50, 0.05
    k = np.arange(n + 1)
    weights = np.array([at_least(i, n, p) - at_least(i + 1, n, p) for i in k])
    assert weights[lower_bound(k, n, error) > p].sum() <= error
    assert weights[upper_bound(k, n, error) < p].sum() <= error


@pytest.mark.parametrize(
    "request_", [(-1, 5, 0.1), (6, 5, 0.1), (0.5, 5, 0.1), (0, 0, 0.1), (1, 5, 0.0), (1, 5, 1.0)]
)
@pytest.mark.parametrize("bound", [lower_bound, upper_bound])
def test_bad_requests(bound, request_):
    with pytest.raises(InvalidRequest):
        bound(*request_)
    with pytest.raises(InvalidRequest):
        bound(1, 5, float("nan"))
