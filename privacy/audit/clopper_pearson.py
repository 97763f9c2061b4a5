"""Exact bounds on a probability from counts (Clopper and Pearson 1934)."""

import numpy as np
from scipy.stats import beta

from privacy.errors import InvalidRequest


def lower_bound(successes: np.ndarray | int, trials: int, error: float) -> np.ndarray:
    """Return the largest p with P[Bin(trials, p) >= successes] <= error, element by element.

    The true probability is below it with probability at most `error`. No success gives 0.

    Raises:
        InvalidRequest: if a count is not a whole number in [0, trials], there is no trial, or the
            error is not in (0, 1).
    """
    k = _counts(successes, trials, error)
    # A beta distribution has positive parameters: k = 0 is computed for k = 1 and put right.
    return np.where(k == 0, 0.0, beta.ppf(error, np.maximum(k, 1), trials - k + 1))


def upper_bound(successes: np.ndarray | int, trials: int, error: float) -> np.ndarray:
    """Return the smallest p with P[Bin(trials, p) <= successes] <= error, element by element.

    The true probability is above it with probability at most `error`. Success in every trial
    gives 1.

    Raises:
        InvalidRequest: as `lower_bound`.
    """
    k = _counts(successes, trials, error)
    return np.where(k == trials, 1.0, beta.isf(error, k + 1, np.maximum(trials - k, 1)))


def _counts(successes: np.ndarray | int, trials: int, error: float) -> np.ndarray:
    whole = isinstance(trials, int | np.integer) and not isinstance(trials, bool)
    if not whole or trials < 1:
        raise InvalidRequest(f"the number of trials must be at least 1, found {trials!r}")
    if not 0 < error < 1:
        raise InvalidRequest(f"the error of a bound must be in (0, 1), found {error!r}")
    k = np.asarray(successes)
    if k.dtype.kind not in "iu" or (k.size and (k.min() < 0 or k.max() > trials)):
        raise InvalidRequest(f"counts must be whole numbers in [0, {trials}]")
    return k
