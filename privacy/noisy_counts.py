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
    """Return k with P[k] = (1 - a) / (1 + a) a^|k|, where a = exp(-1 / scale).

    Canonne, Kamath, Steinke 2020, "The discrete Gaussian for differential privacy", Algorithm 2,
    with t / s = scale. Every call draws anew; nothing can be seeded.

    Raises:
        InvalidRequest: if the scale is not a positive fraction.
    """
    if not isinstance(scale, Fraction) or scale <= 0:
        raise InvalidRequest(
            f"the scale of noise: expected a positive Fraction, found {type(scale).__name__}."
        )
    t, s = scale.numerator, scale.denominator
    while True:
        u = secrets.randbelow(t)
        if not bernoulli_exp(Fraction(u, t)):
            continue
        v = 0
        while bernoulli_exp(Fraction(1)):
            v += 1
        # u + t v is geometric with exp(-1 / t); by s it becomes geometric with exp(-s / t).
        magnitude = (u + t * v) // s
        negative = secrets.randbelow(2) == 1
        if negative and magnitude == 0:
            continue  # zero has one sign only, else it would come twice as often
        return -magnitude if negative else magnitude


def bernoulli_exp(gamma: Fraction) -> bool:
    """Return True with probability exp(-gamma), exactly, for gamma in [0, 1].

    Canonne, Kamath, Steinke 2020, Algorithm 1: draws Bernoulli(gamma / 1), Bernoulli(gamma / 2),
    ... until one is false. That this happens at the k-th has probability gamma^(k-1) / (k-1)! -
    gamma^k / k!, and odd k add up to the series of exp(-gamma).

    Raises:
        InvalidRequest: for a gamma outside [0, 1], where those are no probabilities.
    """
    if not 0 <= gamma <= 1:
        raise InvalidRequest("gamma: expected a fraction from 0 to 1, found one outside.")
    k = 1
    while secrets.randbelow(gamma.denominator * k) < gamma.numerator:
        k += 1
    return k % 2 == 1


_MOST_NOISE = 2**53


@dataclass(frozen=True)
class NoisyCount:
    """A count as it may be released.

    Attributes:
        value: the count plus noise, unbiased; it may be negative.
        low: lower end of the interval for the count itself, at least 0.
        high: its upper end.
        confidence: the probability, over the noise, that the interval holds the count.
    """

    value: int
    low: int
    high: int
    confidence: float


@dataclass(frozen=True)
class NoisyAccuracy:
    """An accuracy as it may be released.

    Attributes:
        value: the noisy share of correct answers, clipped to [0, 1].
        low: lower end of the interval for the accuracy on these very records.
        high: its upper end; the noise is all that is uncertain here.
        population_low: lower end of the interval for the accuracy on new records from where
            these came; both the noise and the choice of the records are uncertain.
        population_high: its upper end.
        confidence: the probability with which each of the two intervals holds its accuracy.
    """

    value: float
    low: float
    high: float
    population_low: float
    population_high: float
    confidence: float


def noisy_counts(
    counts: Sequence[int], sensitivity: int, mechanism: DiscreteLaplace, confidence: float = 0.95
) -> tuple[NoisyCount, ...]:
    """Releases `counts` in one step of `mechanism`, which has to be charged before.

    The sensitivity is that of all counts together, in L1 under add or remove of one record: 1 for
    a count of records with some property, and 1 for a histogram, as a record is in one bin. The
    correct answers of m classifiers on the same records are m calls and m steps.

    Args:
        counts: the true counts, at least 0, any number of them.
        sensitivity: s, a whole number of at least 1.
        mechanism: gives the noise its scale, noise_multiplier * s; a step pays for one call.
        confidence: in (0, 1), for each interval by itself.

    Raises:
        InvalidRequest: for a bad value; the text holds no count.
    """
    checked = [_checked(count) for count in counts]
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
    """Return the accuracy that a released count of correct answers stands for.

    Nothing private is used, so nothing is spent. The population's interval gives half of the
    error to the noise and half to Clopper and Pearson's interval, taken at the ends of what the
    noise leaves possible: by the union bound it fails no more often than stated.

    Args:
        noisy_correct: `value` of a NoisyCount that was released with sensitivity 1.
        total: how many records were asked about, public, at least 1.
        mechanism: what the count was released with.
        confidence: in (0, 1), for each of the two intervals.

    Raises:
        InvalidRequest: for a bad value.
    """
    total = positive_int("total", total)
    error = 1.0 - open_probability("confidence", confidence)
    scale = _scale(mechanism, 1)
    reach = noise_quantile(scale, confidence)
    wider = noise_quantile(scale, 1.0 - error / 2)

    def within(count: int) -> int:
        return min(max(count, 0), total)

    from scipy.stats import binomtest

    def binomial(count: int) -> tuple[float, float]:
        test = binomtest(within(count), total)
        low, high = test.proportion_ci(confidence_level=1.0 - error / 2, method="exact")
        return float(low), float(high)

    return NoisyAccuracy(
        value=within(noisy_correct) / total,
        low=within(noisy_correct - reach) / total,
        high=within(noisy_correct + reach) / total,
        population_low=binomial(noisy_correct - wider)[0],
        population_high=binomial(noisy_correct + wider)[1],
        confidence=confidence,
    )


def noise_quantile(scale: Fraction | float, confidence: float) -> int:
    """Return the least w with P[|noise| <= w] >= confidence for discrete Laplace noise.

    P[|noise| > w] = 2 a^(w+1) / (1 + a) with a = exp(-1 / scale).

    Raises:
        InvalidRequest: for a confidence outside (0, 1).
    """
    error = 1.0 - open_probability("confidence", confidence)
    # log(2 / ((1 + a) error)) is how many scales w + 1 has to reach.
    b = float(scale)
    scales = math.log(2 / error) - math.log1p(math.exp(-1 / b))
    return max(math.ceil(b * scales) - 1, 0)


def _scale(mechanism: DiscreteLaplace, sensitivity: int) -> Fraction:
    """Return the noise's scale: a product of exact factors, so it is what is accounted."""
    if not isinstance(mechanism, DiscreteLaplace):
        raise InvalidRequest(
            f"noisy counts: expected a DiscreteLaplace mechanism, found {type(mechanism).__name__}."
        )
    scale = Fraction(mechanism.noise_multiplier) * sensitivity
    if scale > _MOST_NOISE:
        raise InvalidRequest(
            "noisy counts: expected noise_multiplier * sensitivity of at most 2**53, found more, "
            "which would drown any count. Give less noise."
        )
    return scale


def _checked(count: object) -> int:
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
        raise InvalidRequest(
            "counts: expected whole numbers of at least 0, found something else of type "
            f"{type(count).__name__}."
        )
    return int(count)
