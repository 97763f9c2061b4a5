"""Discrete Laplace noise, exactly: whole numbers and the operating system's generator only.

No floating-point number comes near the noise, so there are no gaps and no rounding for an attacker
to read the signal from (Mironov 2012, "On significance of the least significant bits for
differential privacy"). How long a draw takes does depend on what is drawn: let nobody who is not
trusted time it.
"""

import secrets
from fractions import Fraction

from privacy.errors import InvalidRequest


def discrete_laplace(scale: Fraction) -> int:
    """Returns k with P[k] = (1 - a) / (1 + a) a^|k|, where a = exp(-1 / scale).

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
    """Returns True with probability exp(-gamma), exactly, for gamma in [0, 1].

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
