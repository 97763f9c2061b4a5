"""Released counts and the intervals around them: they hold as often as they say, and just so."""

import dataclasses
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy import noisy_counts as module
from privacy.errors import InvalidRequest
from privacy.mechanisms import DiscreteLaplace, Gaussian
from privacy.noisy_counts import NoisyCount, accuracy_interval, noise_quantile, noisy_counts


def tail(scale: float, w: int) -> mpmath.mpf:
    """P[|noise| > w], summed from the definition."""
    with mpmath.workdps(40):
        a = mpmath.exp(-1 / mpmath.mpf(scale))
        return 1 - (1 - a) / (1 + a) * (1 + 2 * mpmath.fsum(a**k for k in range(1, w + 1)))


@given(st.floats(0.05, 200.0), st.sampled_from([0.5, 0.9, 0.95, 0.975, 0.999]))
def test_the_quantile_is_the_least_with_the_confidence(scale, confidence):
    w = noise_quantile(scale, confidence)
    error = 1 - mpmath.mpf(confidence)
    assert tail(scale, w) <= error * (1 + mpmath.mpf(10) ** -12)
    assert w == 0 or tail(scale, w - 1) > error


def test_the_quantile_of_negligible_noise_is_zero():
    assert noise_quantile(1e-300, 0.999) == 0


def laplace(rng: np.random.Generator, scale: float, size: int) -> np.ndarray:
    """Discrete Laplace by another way: the difference of two geometric numbers."""
    a = math.exp(-1 / scale)
    return rng.geometric(1 - a, size) - rng.geometric(1 - a, size)


TRIALS = 4000


def rate(holds: list[bool], confidence: float) -> tuple[float, float]:
    """How often it held, and the least that is believable of an interval that is right."""
    return np.mean(holds), confidence - 4.5 * math.sqrt(confidence * (1 - confidence) / len(holds))


@pytest.mark.parametrize(("noise", "sensitivity"), [(2.0, 1), (5.0, 3)])
def test_intervals_cover_the_counts_with_the_stated_confidence(noise, sensitivity):
    mechanism = DiscreteLaplace(noise)
    released = noisy_counts([40] * TRIALS, sensitivity, mechanism, 0.9)
    found, least = rate([c.low <= 40 <= c.high for c in released], 0.9)
    assert least < found < 0.99
    # An interval for noise of half the scale is caught.
    narrow = noise_quantile(noise * sensitivity / 2, 0.9)
    assert np.mean([abs(c.value - 40) <= narrow for c in released]) < least


def test_the_noise_has_the_exact_scale_that_is_accounted_for(monkeypatch):
    scales = []
    monkeypatch.setattr(module, "discrete_laplace", lambda scale: scales.append(scale) or -3)
    released = noisy_counts([7, np.int64(1)], 3, DiscreteLaplace(0.1), 0.95)
    assert scales == [3 * Fraction(0.1)] * 2
    assert [c.value for c in released] == [4, -2]
    assert released[1] == NoisyCount(-2, 0, 0, 0.95)  # noise 0.3: the count is at least 0
    assert [type(c.value) for c in released] == [int, int]


def test_every_count_has_independent_noise():
    released = noisy_counts([1000] * 50, 1, DiscreteLaplace(100.0))
    assert len({c.value for c in released}) > 20


@pytest.mark.parametrize(("accuracy", "total", "noise"), [(0.93, 300, 4.0), (0.5, 40, 3.0)])
def test_intervals_cover_the_accuracies_with_the_stated_confidence(accuracy, total, noise):
    rng = np.random.default_rng(1)
    confidence = 0.9
    true = rng.binomial(total, accuracy, TRIALS)
    noisy = true + laplace(rng, noise, TRIALS)
    memory = {
        int(n): accuracy_interval(int(n), total, DiscreteLaplace(noise), confidence)
        for n in set(noisy.tolist())
    }
    found = [memory[n] for n in noisy.tolist()]
    held, least = rate(
        [r.low <= t / total <= r.high for r, t in zip(found, true, strict=True)], confidence
    )
    assert held > least
    held, least = rate(
        [r.population_low <= accuracy <= r.population_high for r in found], confidence
    )
    assert held > least
    # Neither interval does the other's work: that for these records is too narrow for the
    # population, and Clopper and Pearson's without the noise is too narrow as well.
    assert np.mean([r.low <= accuracy <= r.high for r in found]) < least
    alone = [memory[n].value for n in noisy.tolist()]
    width = 1.645 * math.sqrt(accuracy * (1 - accuracy) / total)
    assert np.mean(np.abs(np.array(alone) - accuracy) <= width) < least


def test_intervals_are_clipped_and_nested():
    found = accuracy_interval(1, 20, DiscreteLaplace(1.0), 0.95)
    w, wider = noise_quantile(1.0, 0.95), noise_quantile(1.0, 0.975)
    assert (found.value, found.low, found.high) == (0.05, 0.0, (1 + w) / 20)
    assert found.population_low == 0.0
    # P[Bin(20, p) <= 1 + wider] = 0.0125 at the upper end of Clopper and Pearson's interval
    p = mpmath.mpf(found.population_high)
    below = mpmath.fsum(
        mpmath.binomial(20, k) * p**k * (1 - p) ** (20 - k) for k in range(2 + wider)
    )
    assert float(below) == pytest.approx(0.0125, rel=1e-6)
    assert found.confidence == 0.95


@pytest.mark.parametrize("correct", [-50, 0, 1, 7, 19, 20, 70])
def test_the_populations_interval_is_clopper_and_pearsons_by_scipy(correct):
    found = accuracy_interval(correct, 20, DiscreteLaplace(0.5), 0.9)
    w = noise_quantile(0.5, 0.95)
    low, high = (
        stats.binomtest(min(max(count, 0), 20), 20).proportion_ci(0.95, method="exact")
        for count in (correct - w, correct + w)
    )
    assert found.population_low == pytest.approx(low.low, rel=1e-9)
    assert found.population_high == pytest.approx(high.high, rel=1e-9)


@given(st.integers(-500, 1500), st.integers(1, 1000), st.floats(0.1, 50), st.floats(0.5, 0.999))
def test_every_number_is_in_the_unit_interval_and_in_order(noisy, total, noise, confidence):
    found = accuracy_interval(noisy, total, DiscreteLaplace(noise), confidence)
    assert all(0 <= number <= 1 for number in dataclasses.astuple(found))
    assert found.population_low <= found.low <= found.value <= found.high <= found.population_high


MECHANISM = DiscreteLaplace(1.0)


@pytest.mark.parametrize("bad", [-1, 1.0, True, "7", None, math.nan])
def test_invalid_counts_are_refused_without_being_shown(bad):
    with pytest.raises(InvalidRequest, match="counts") as refused:
        noisy_counts([12345, bad], 1, MECHANISM)
    assert "12345" not in str(refused.value)
    assert repr(bad) not in str(refused.value).replace(type(bad).__name__, "")


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, None])
def test_invalid_sensitivities_and_totals_are_refused(bad):
    with pytest.raises(InvalidRequest, match="sensitivity"):
        noisy_counts([1], bad, MECHANISM)
    with pytest.raises(InvalidRequest, match="total"):
        accuracy_interval(1, bad, MECHANISM)


@pytest.mark.parametrize("bad", [0.0, 1.0, 1.5, -0.1, math.nan, True, "0.9"])
def test_invalid_confidences_are_refused(bad):
    with pytest.raises(InvalidRequest, match="confidence"):
        noisy_counts([1], 1, MECHANISM, bad)
    with pytest.raises(InvalidRequest, match="confidence"):
        accuracy_interval(1, 10, MECHANISM, bad)


@pytest.mark.parametrize("bad", [Gaussian(1.0), None, DiscreteLaplace(1e300)])
def test_other_mechanisms_and_excessive_noise_are_refused(bad):
    with pytest.raises(InvalidRequest, match="noisy counts"):
        noisy_counts([1], 1, bad)
    with pytest.raises(InvalidRequest, match="noisy counts"):
        accuracy_interval(1, 10, bad)
