"""Counts of private records, released with discrete Laplace noise and an interval around each."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral

from privacy.errors import InvalidRequest
from privacy.mechanisms import DiscreteLaplace
from privacy.validation import open_probability, positive_int


def discrete_laplace(scale: Fraction) -> int:
    """Return a fresh k with P[k] = (1 - a) / (1 + a) a^|k|, where a = exp(-1 / scale).

    Canonne, Kamath, Steinke 2020, "The discrete Gaussian for differential privacy", Algorithm 2,
    with t / s = scale. Raises InvalidRequest if that is not a positive fraction.
    """
    if not isinstance(scale, Fraction) or scale <= 0:
        found = type(scale).__name__
        raise InvalidRequest(f"the scale of noise: expected a positive Fraction, found {found}.")
    t, s = scale.numerator, scale.denominator
    while True:
        u, v = secrets.randbelow(t), 0
        if not bernoulli_exp(Fraction(u, t)):
            continue
        while bernoulli_exp(Fraction(1)):
            v += 1
        # u + t v is geometric with exp(-1 / t); by s it becomes geometric with exp(-s / t).
        magnitude = (u + t * v) // s
        negative = secrets.randbelow(2) == 1
        if negative and magnitude == 0:
            continue  # zero has one sign only, else it would come twice as often
        return -magnitude if negative else magnitude


def bernoulli_exp(gamma: Fraction) -> bool:
    """Return True with probability exp(-gamma), exactly (the same paper's Algorithm 1).

    Raises InvalidRequest for a gamma outside [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise InvalidRequest("gamma: expected a fraction from 0 to 1, found one outside.")
    # Draw Bernoulli(gamma / k) for k = 1, 2, ... until one is false: the k-th with probability
    # gamma^(k-1) / (k-1)! - gamma^k / k!, and over odd k these add up to the series of exp(-gamma).
    k = 1
    while secrets.randbelow(gamma.denominator * k) < gamma.numerator:
        k += 1
    return k % 2 == 1


@dataclass(frozen=True)
class NoisyCount:
    """A count that may be released."""

    value: int  # the count plus noise, unbiased; it may be negative
    low: int  # low and high: confidence interval of the count, at least 0
    high: int
    confidence: float  # probability, over the noise, that the interval covers the count


@dataclass(frozen=True)
class NoisyAccuracy:
    """An accuracy that may be released."""

    value: float  # noisy share of correct predictions, clipped to [0, 1]
    low: float  # low and high: confidence interval of the accuracy on these records, over the noise
    high: float
    # Confidence interval of the accuracy on the population that the records were drawn from, over
    # the noise and the draw.
    population_low: float
    population_high: float
    confidence: float  # probability that each of the two intervals covers its accuracy


def noisy_counts(
    counts: Sequence[int], sensitivity: int, mechanism: DiscreteLaplace, confidence: float = 0.95
) -> tuple[NoisyCount, ...]:
    """Return noised `counts`: one step of `mechanism`, which must have been charged before.

    Args:
        counts: the true counts, at least 0, any number of them.
        sensitivity: s, a whole number of at least 1: of all counts together, in L1 under adding or
            removing one record; 1 for a count of records with some property and for a histogram.
            The correct predictions of m classifiers on the same records are m calls and m steps.
        mechanism: sets the noise's scale, noise_multiplier * s.
        confidence: in (0, 1), of each interval by itself.

    Raises:
        InvalidRequest: for a bad value; the message holds no count.
    """
    checked = [_private_count(count) for count in counts]
    scale = _scale(mechanism, positive_int("sensitivity", sensitivity))
    reach = noise_quantile(scale, confidence)
    released = [count + discrete_laplace(scale) for count in checked]
    return tuple(
        NoisyCount(value, max(value - reach, 0), max(value + reach, 0), confidence)
        for value in released
    )


def accuracy_interval(
    noisy_correct: int, total: int, mechanism: DiscreteLaplace, confidence: float = 0.95
) -> NoisyAccuracy:
    """Return the accuracy for a released count of correct predictions; this costs no privacy.

    Args:
        noisy_correct: `value` of a NoisyCount that was released with sensitivity 1.
        total: number of records that were classified, public, at least 1.
        mechanism: what the count was released with.
        confidence: in (0, 1), of each of the two intervals.

    Raises:
        InvalidRequest: for a bad value.
    """
    from scipy.stats import beta  # slow to import

    total = positive_int("total", total)
    scale, half_error = _scale(mechanism, 1), (1.0 - open_probability("confidence", confidence)) / 2
    reach = noise_quantile(scale, confidence)

    def within(count: int) -> int:
        return min(max(count, 0), total)

    # The population's interval gives half of the error to the noise and half to Clopper and
    # Pearson's interval at the ends of the noise's: the union bound.
    wider = noise_quantile(scale, 1.0 - half_error)
    fewest, most = within(noisy_correct - wider), within(noisy_correct + wider)
    lower = beta.ppf(half_error / 2, fewest, total - fewest + 1) if fewest else 0.0
    upper = beta.isf(half_error / 2, most + 1, total - most) if most < total else 1.0
    return NoisyAccuracy(
        value=within(noisy_correct) / total,
        low=within(noisy_correct - reach) / total,
        high=within(noisy_correct + reach) / total,
        population_low=float(lower),
        population_high=float(upper),
        confidence=confidence,
    )


def noise_quantile(scale: Fraction | float, confidence: float) -> int:
    """Return the least w with P[|noise| <= w] >= confidence for discrete Laplace noise."""
    error = 1.0 - open_probability("confidence", confidence)
    # P[|noise| > w] = 2 a^(w+1) / (1 + a) with a = exp(-1 / scale): log(2 / ((1 + a) error)) is how
    # many scales w + 1 has to reach.
    b = float(scale)
    scales = math.log(2 / error) - math.log1p(math.exp(-1 / b))
    return max(math.ceil(b * scales) - 1, 0)


def _scale(mechanism: DiscreteLaplace, sensitivity: int) -> Fraction:
    """Return the noise's scale, an exact product, so that it is the one accounted for."""
    if not isinstance(mechanism, DiscreteLaplace):
        raise InvalidRequest("noisy counts: expected a DiscreteLaplace mechanism, found another.")
    scale = Fraction(mechanism.noise_multiplier) * sensitivity
    if scale > 2**53:  # it would drown any count
        expected = "noise_multiplier * sensitivity of at most 2**53"
        raise InvalidRequest(f"noisy counts: expected {expected}, found more. Reduce the noise.")
    return scale


def _private_count(count: object) -> int:
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
        found = type(count).__name__  # the value is private
        raise InvalidRequest(f"counts: expected whole numbers of at least 0, found type {found}.")
    return int(count)
