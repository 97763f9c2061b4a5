"""Rényi DP by dp-accounting: the accountant that admits."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import ClassVar, assert_never

import numpy as np

from privacy.accounting.base import collapse
from privacy.mechanisms import DiscreteLaplace, Gaussian, Mechanism, SubsampledGaussian
from privacy.validation import open_probability

# Below this noise the bound is stated as infinite: epsilon would be past 100,000.
_LEAST_NOISE = 1e-3

# The library sums terms of order one in double precision: a smaller result is rounding error.
_ROUNDING = 1e-12


def _orders() -> np.ndarray:
    """Returns orders spaced so that missing the best one costs about 0.1 % of epsilon at most.

    The best order is near 1 + 2 log(1/delta)/epsilon and the loss is of second order in the
    relative distance to it, so the spacing grows with the order. Fractions stop at 12: further
    up, whole orders are dense enough and their sums exact.
    """
    orders = [1.05, *(i / 10 for i in range(11, 40))]
    orders += [i / 5 for i in range(20, 35)] + [i / 2 for i in range(14, 24)]
    orders += range(12, 64)
    order = 64
    while order < 1024:
        orders.append(order)
        order = math.ceil(order * 1.06)
    grid = np.array([*orders, 1024], dtype=np.float64)
    grid.setflags(write=False)
    return grid


ORDERS: np.ndarray = _orders()
"""The orders alpha, ascending, shape [A]; read-only. Ledgers store no curves, so it may grow."""


def curve(mechanisms: Sequence[Mechanism]) -> np.ndarray:
    """Returns the composed RDP of `mechanisms` at every order of ORDERS, shape [A] float64.

    RDP composes by adding, so curves of parts may be added too. Only the first call for a new
    type and new parameters does real work.

    Raises:
        InvalidRequest: for something that is not a mechanism.
    """
    total = np.zeros_like(ORDERS)
    with np.errstate(over="ignore"):  # past the range of a double: no order says anything
        for step, number in collapse(mechanisms):
            total += number * _step_curve(step)
    return total


def epsilon_of(rdp: np.ndarray, delta: float) -> float:
    """Returns epsilon of an RDP curve at `delta`, minimised over ORDERS.

    Conversion: Canonne, Kamath, Steinke 2020, Proposition 12 (also Balle et al. 2020).
    """
    if not np.any(np.isfinite(rdp)):
        return math.inf
    from dp_accounting.rdp import compute_epsilon

    return float(compute_epsilon(ORDERS, rdp, open_probability("delta", delta))[0])


class RDPAccountant:
    """Rényi accountant over ORDERS; its composition is the one that the budget's filter uses."""

    name: ClassVar[str] = "rdp"

    def curve(self, mechanisms: Sequence[Mechanism]) -> np.ndarray:
        """Returns the composed RDP at ORDERS; see `curve` of this module."""
        return curve(mechanisms)

    def epsilon(self, mechanisms: Sequence[Mechanism], delta: float) -> float:
        """Returns an upper bound on epsilon at `delta`; see `Accountant.epsilon`."""
        delta = open_probability("delta", delta)
        return epsilon_of(curve(mechanisms), delta)


@lru_cache(maxsize=4096)
def _step_curve(step: Mechanism) -> np.ndarray:
    """Returns the RDP of one step at ORDERS, read-only."""
    match step:
        case SubsampledGaussian():
            result = _sampled_gaussian(step.sampling_probability, step.noise_multiplier)
        case Gaussian():
            result = _sampled_gaussian(1.0, step.noise_multiplier)
        case DiscreteLaplace():
            result = _pure(step.step_epsilon)
        case _:
            assert_never(step)
    result.setflags(write=False)
    return result


def _pure(epsilon: float) -> np.ndarray:
    """Returns the RDP at ORDERS of randomised response at `epsilon`, the most of any pure DP.

    With p = e^epsilon / (1 + e^epsilon), exp((a-1) RDP) = p^a (1-p)^(1-a) + (1-p)^a p^(1-a)
    (Mironov 2017, Proposition 5). It equals 1 + 2 sinh(a epsilon/2) sinh((a-1) epsilon/2) /
    cosh(epsilon/2), which keeps its digits where epsilon is small, and e^((a-1) epsilon) (1 +
    e^((1-2a) epsilon)) / (1 + e^-epsilon), which keeps within range where a epsilon is large.
    """
    a = ORDERS
    with np.errstate(over="ignore"):
        x = np.minimum(epsilon * a, 50.0) / 2
        y = np.minimum(epsilon * (a - 1), 50.0) / 2
        small = np.log1p(2 * np.sinh(x) * np.sinh(y) / math.cosh(min(epsilon, 50.0) / 2))
        rest = np.log1p(np.exp((1 - 2 * a) * epsilon)) - math.log1p(math.exp(-epsilon))
    values: np.ndarray = np.where(epsilon * a < 50.0, small / (a - 1), epsilon + rest / (a - 1))
    return values


def _sampled_gaussian(q: float, sigma: float) -> np.ndarray:
    """Returns the RDP of one step at ORDERS (Mironov, Talwar, Zhang 2019, section 3.3)."""
    if sigma < _LEAST_NOISE:
        return np.full_like(ORDERS, math.inf)
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(ORDERS)
    with _failing_orders_unsaid():
        accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)))
    return _repaired(accountant.rdp, q, sigma)


def _repaired(rdp: np.ndarray, q: float, sigma: float) -> np.ndarray:
    """Returns `rdp` with entries that rounding or a failed series spoilt replaced by safe bounds.

    The library's sums may come out at or below zero where the truth is under 1e-12, which many
    steps would turn into an understated epsilon. For integer n, A_n = E[(1 + q(L-1))^n] has only
    non-negative terms, so its second-order term bounds RDP from below and is exact at n = 2. RDP
    grows with the order, so the value at 2 bounds all orders below it from above.
    """
    whole = np.maximum(np.floor(ORDERS), 2.0)
    with np.errstate(over="ignore"):
        second_order = whole * (whole - 1) / 2 * q**2 * np.expm1(sigma**-2)
    floor = np.log1p(second_order) / (whole - 1)
    at_two = floor[0] if math.isfinite(floor[0]) else rdp[ORDERS == 2.0][0]
    low = np.where((rdp < _ROUNDING) | (rdp > at_two), at_two, rdp)
    high = np.where(np.isfinite(floor), np.maximum(rdp, floor), rdp)
    return np.where(ORDERS < 2.0, low, high)


@contextmanager
def _failing_orders_unsaid() -> Iterator[None]:
    """Keeps the library's warning about a failed order off stderr: `_repaired` sees to it."""

    def other_message(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(other_message)
    try:
        yield
    finally:
        logger.removeFilter(other_message)
