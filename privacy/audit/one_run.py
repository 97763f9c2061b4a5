"""A lower bound on ε from a single run (Steinke, Nasr and Jagielski, NeurIPS 2023).

Each of m canaries is included or left out by a fair coin; an attack that sees the output guesses r
of the coins, v of them correctly. The better it guesses, the larger ε must be.
"""

import math

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from privacy.errors import InvalidRequest
from privacy.validation import whole_number

_WIDTH = 1e-9  # of the last bracket around a bound


def p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """Return how likely it is, at most, to guess this well against an (ε, δ)-DP mechanism.

    Theorem 5.2: with f(j) = P[Bin(r, e^ε / (1 + e^ε)) >= j], the chance of at least v right
    guesses is at most f(v) + 2 m δ max_{1 <= i <= v} (f(v - i) - f(v)) / i.

    `epsilon` >= 0 and `delta` in [0, 1] are the claim; the attack may abstain for m - r canaries.
    Raises InvalidRequest unless 0 <= v <= r <= m are whole numbers, m is positive and ε and δ are
    in their ranges.
    """
    _check(m, r, v, delta)
    if not 0 <= epsilon < math.inf:
        raise InvalidRequest(f"epsilon must be at least 0 and finite, found {epsilon!r}")
    return _p_value(m, r, v, epsilon, delta)


def epsilon_lower_bound(m: int, r: int, v: int, delta: float, beta: float) -> float:
    """Return the largest ε up to which v right guesses out of r refute every claim.

    With probability at least 1 - beta the mechanism's true ε at `delta` is not below it; 0 where
    nothing is refuted. Raises InvalidRequest as `p_value`, or if beta is not in (0, 1).
    """
    _check(m, r, v, delta)
    if not 0 < beta < 1:
        raise InvalidRequest(f"beta must be in (0, 1), found {beta!r}")
    if _p_value(m, r, v, 0.0, delta) > beta:
        return 0.0
    high = 1.0
    # Ends: f(v) tends to 1 as ε grows.
    while _p_value(m, r, v, high, delta) <= beta:
        high *= 2
    low = 0.0
    while high - low > _WIDTH:
        middle = (low + high) / 2
        if _p_value(m, r, v, middle, delta) <= beta:
            low = middle
        else:
            high = middle
    return low


def detectable(m: int, r: int, delta: float, beta: float) -> float:
    """Return the bound that guessing right every time would have given: what could be shown."""
    return epsilon_lower_bound(m, r, r, delta, beta)


def _p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    p = expit(epsilon)
    tail = float(binom.sf(v - 1, r, p))
    worst = 0.0
    if v > 0 and delta > 0:
        # f(v - i) - f(v) = P[v - i <= Bin < v], summed from v - 1 downwards.
        missed = np.cumsum(binom.pmf(np.arange(v - 1, -1, -1), r, p))
        worst = float((missed / np.arange(1, v + 1)).max())
    return min(1.0, tail + 2 * m * delta * worst)


def _check(m: int, r: int, v: int, delta: float) -> None:
    for name, count in (("m", m), ("r", r), ("v", v)):
        whole_number(name, count)
    if not 0 <= v <= r <= m or m < 1:
        raise InvalidRequest(
            "of m canaries, r are guessed and v guessed rightly: expected 0 <= v <= r <= m and "
            f"m > 0, found m = {m}, r = {r}, v = {v}"
        )
    if not 0 <= delta <= 1:
        raise InvalidRequest(f"delta must be in [0, 1], found {delta!r}")
