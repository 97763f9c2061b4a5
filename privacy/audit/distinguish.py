"""A lower bound on ε from runs of any mechanism, by distinguishing two neighbouring inputs.

A mechanism is (ε, δ)-DP only if P[S] <= e^ε P'[S] + δ for every set S of outputs and both orders
of the two neighbouring inputs. One set for which counts contradict that is enough to refute a
claim (Jagielski, Ullman and Oprea 2020; Nasr et al. 2021), and nothing needs to be known about
how the mechanism works.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from privacy.errors import InvalidRequest
from privacy.validation import open_probability, positive_int


def lower_bound(successes: np.ndarray | int, trials: int, error: float) -> np.ndarray:
    """Return the largest p with P[Bin(trials, p) >= successes] <= error, element by element.

    The true probability is below it with probability at most `error`. No success gives 0. Raises
    InvalidRequest if a count is not a whole number in [0, trials], there is no trial, or the error
    is not in (0, 1).
    """
    k = _counts(successes, trials, error)
    # A beta distribution has positive parameters: k = 0 is computed for k = 1 and put right.
    return np.where(k == 0, 0.0, beta.ppf(error, np.maximum(k, 1), trials - k + 1))


def upper_bound(successes: np.ndarray | int, trials: int, error: float) -> np.ndarray:
    """Return the smallest p with P[Bin(trials, p) <= successes] <= error, element by element.

    The true probability is above it with probability at most `error`. Success in every trial gives
    1. Raises InvalidRequest as `lower_bound`.
    """
    k = _counts(successes, trials, error)
    return np.where(k == trials, 1.0, beta.isf(error, k + 1, np.maximum(trials - k, 1)))


def _counts(successes: np.ndarray | int, trials: int, error: float) -> np.ndarray:
    positive_int("trials", trials)
    open_probability("the error of a bound", error)
    k = np.asarray(successes)
    if k.dtype.kind not in "iu" or (k.size and (k.min() < 0 or k.max() > trials)):
        raise InvalidRequest(f"counts must be whole numbers in [0, {trials}]")
    return k


@dataclass(frozen=True)
class LowerBound:
    """What runs have shown about ε."""

    epsilon: float  # with the stated confidence no claim below this is true; 0 shows nothing
    detectable: float  # the most that so many runs could show, if every one was classified right
    confidence: float  # probability, over the runs, that `epsilon` is not above the true ε
    trials: int  # runs of each of the two worlds


def epsilon_lower_bound(
    present: np.ndarray, absent: np.ndarray, delta: float, confidence: float
) -> LowerBound:
    """Bound ε from below by scores of independent runs with and without one record.

    The set S is "the score is above a threshold" or "at or below it". Threshold, side, and which
    world is in the numerator are chosen on every other run; the runs between them, which the
    choice has not seen, give ε >= ln((P[S] - δ) / P'[S]) with the Clopper-Pearson bounds of both
    probabilities, half of the error for each.

    `present` and `absent` are float [n], a score of each run with and without the record, n at
    least 2; δ of the claim is in [0, 1). Raises InvalidRequest if the arrays are not two of finite
    numbers and equal length, or a number is out of its range.
    """
    present, absent = _scores(present), _scores(absent)
    if len(present) != len(absent) or len(present) < 2:
        found = f"{len(present)} and {len(absent)}"
        raise InvalidRequest(
            f"expected equally many scores of both kinds, at least 2, found {found}"
        )
    if not 0 <= delta < 1:
        raise InvalidRequest(f"delta must be in [0, 1), found {delta!r}")
    error = (1 - open_probability("confidence", confidence)) / 2
    thresholds = np.unique(np.concatenate([present[::2], absent[::2]]))
    bounds = _bounds(present[::2], absent[::2], thresholds, delta, error)
    attack, best = np.unravel_index(bounds.argmax(), bounds.shape)
    held = _bounds(present[1::2], absent[1::2], thresholds[best : best + 1], delta, error)
    n = len(present[1::2])
    detectable = _ratio(np.array(n), np.array(0), n, delta, error)
    return LowerBound(
        epsilon=float(held[attack, 0]),
        detectable=float(detectable),
        confidence=confidence,
        trials=len(present),
    )


def _bounds(
    present: np.ndarray, absent: np.ndarray, thresholds: np.ndarray, delta: float, error: float
) -> np.ndarray:
    """Return the bounds [4, thresholds] of the four attacks: two sides times two numerators."""
    n = len(present)
    p = n - np.searchsorted(np.sort(present), thresholds, side="right")
    a = n - np.searchsorted(np.sort(absent), thresholds, side="right")
    attacks = ((p, a), (a, p), (n - p, n - a), (n - a, n - p))
    return np.stack([_ratio(*counts, n, delta, error) for counts in attacks])


def _ratio(
    hits: np.ndarray, false_hits: np.ndarray, n: int, delta: float, error: float
) -> np.ndarray:
    """Return max(0, ln((P[S] - δ) / P'[S])) with both probabilities bounded, element by element."""
    surplus = lower_bound(hits, n, error) - delta
    # The upper bound of a probability is never 0, so what is not positive ends up at 0 exactly.
    ratio = np.maximum(surplus, 0.0) / upper_bound(false_hits, n, error)
    return np.log(np.maximum(ratio, 1.0))


def _scores(values: np.ndarray) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise InvalidRequest("scores must be a one-dimensional array of finite numbers")
    return scores
