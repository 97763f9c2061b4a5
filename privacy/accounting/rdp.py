"""Rényi DP by dp-accounting: the accountant that admits, and the filter that budgets use."""

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, assert_never

import numpy as np

from privacy.accounting.base import collapse
from privacy.errors import InvalidRequest
from privacy.mechanisms import DiscreteLaplace, Gaussian, Mechanism, SubsampledGaussian
from privacy.validation import open_probability, positive_number

# Below this noise the bound is stated as infinite: ε would be past 100,000.
_MIN_NOISE = 1e-3

# The library sums terms of order one in double precision: a smaller result is rounding error.
_ROUNDING = 1e-12


def _orders() -> np.ndarray:
    """Return orders spaced so that missing the best one costs about 0.1 % of ε at most.

    The best order is near 1 + 2 log(1/δ)/ε and the loss is of second order in the relative
    distance to it, so the spacing grows with the order.
    """
    # Fractions stop at 12: further up, whole orders are dense enough and their sums exact.
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


# The orders α, ascending, shape [A]; read-only. Ledgers store no curves, so it may grow.
ORDERS: np.ndarray = _orders()


def curve(mechanisms: Sequence[Mechanism]) -> np.ndarray:
    """Return the composed RDP of `mechanisms` at every order of ORDERS, shape [A] float64.

    RDP composes by adding, so curves of parts may be added too. Only the first call for a new type
    and new parameters does real work. Raises InvalidRequest for something that is not a mechanism.
    """
    return _curve(mechanisms, 0, len(ORDERS))


def epsilon_of(rdp: np.ndarray, delta: float) -> float:
    """Return ε of an RDP curve, shape [A], at `delta`, minimised over ORDERS.

    Conversion: Canonne, Kamath, Steinke 2020, Proposition 12 (also Balle et al. 2020).
    """
    return _convert(ORDERS, rdp, delta)[0]


class RDPAccountant:
    """Rényi accountant over ORDERS; its composition is the one that the budget's filter uses."""

    name: ClassVar[str] = "rdp"

    def epsilon(self, mechanisms: Sequence[Mechanism], delta: float) -> float:
        """Return an upper bound on ε at `delta`; see `Accountant.epsilon`.

        >>> round(RDPAccountant().epsilon([SubsampledGaussian(0.01, 1.0, 1000)], 1e-5), 2)
        2.11
        """
        delta = open_probability("delta", delta)
        return epsilon_of(curve(mechanisms), delta)


class NearbyOrders:
    """ε by RDP for similar compositions, one after the other, at few orders each.

    Mostly ε falls with the order up to the best one and rises from there, and similar compositions
    have similar best orders: each search begins at the best order of the one before and widens
    until the minimum lies inside. Fewer orders cannot make an ε too small.
    """

    def __init__(self) -> None:
        self._best: int | None = None

    def epsilon(self, mechanisms: Sequence[Mechanism], delta: float) -> float:
        """Return an upper bound on ε at `delta`; `RDPAccountant` may find a smaller one."""
        size, reach = len(ORDERS), 3
        while True:
            low, high = 0, size
            if self._best is not None:
                low, high = max(self._best - reach, 0), min(self._best + reach + 1, size)
            epsilon, best = _convert(ORDERS[low:high], _curve(mechanisms, low, high), delta)
            self._best = low + best
            inside = (best > 0 or low == 0) and (low + best < high - 1 or high == size)
            if inside or high - low == size:
                return epsilon
            reach *= 2


class RDPFilter:
    """Admit a composition if and only if some order's RDP stays within the budget's bound.

    Order by order it inverts the conversion that `RDPAccountant` uses, so that admitting a curve
    and the curve's ε being within the budget are the same statement. Filters under adaptive
    composition: Feldman and Zrnic 2021; Lécuyer 2021.

    `bound` is the largest RDP admitted at each order of ORDERS, shape [A], read-only; orders with a
    negative bound never admit anything.

    >>> budget = RDPFilter(epsilon=1.0, delta=1e-5)
    >>> budget.admits(curve([Gaussian(5.0)])), budget.admits(curve([Gaussian(3.0)]))
    (True, False)
    """

    def __init__(self, epsilon: float, delta: float) -> None:
        self.limit = positive_number("epsilon", epsilon)
        self.delta = open_probability("delta", delta)
        self.bound = _bound(self.limit, self.delta)

    def admits(self, curve: np.ndarray) -> bool:
        """Return whether the composed RDP `curve`, shape [A], is within the budget.

        Raises InvalidRequest if `curve` is no RDP curve over ORDERS (fail closed).
        """
        return bool(np.any(_checked(curve) <= self.bound))

    def epsilon(self, curve: np.ndarray) -> float:
        """Return the ε that `curve` has spent at the budget's δ; raises as `admits`."""
        return epsilon_of(_checked(curve), self.delta)


def _bound(epsilon: float, delta: float) -> np.ndarray:
    """Return the RDP at which each order's conversion gives exactly `epsilon`.

    Canonne, Kamath, Steinke 2020, Proposition 12, solved for the RDP; and δ <= sqrt(1 -
    exp(-KL)), by which an RDP below -log(1 - δ²) already means ε = 0.
    """
    renyi = epsilon - np.log1p(-1 / ORDERS) + np.log(delta * ORDERS) / (ORDERS - 1)
    # The library asks for strictly less; a rounding error's width keeps on its side.
    divergence = -math.log1p(-(delta**2)) * (1 - 1e-9)
    bound: np.ndarray = np.maximum(renyi, divergence)
    bound.setflags(write=False)
    return bound


def _checked(curve: np.ndarray) -> np.ndarray:
    values = np.asarray(curve, dtype=np.float64)
    if values.shape != ORDERS.shape or np.any(np.isnan(values)) or np.any(values < 0):
        raise InvalidRequest(
            f"RDP curve: expected a value of at least 0 for each of {len(ORDERS)} orders, found "
            f"shape {values.shape}, or a negative value or NaN."
        )
    return values


def _convert(orders: np.ndarray, rdp: np.ndarray, delta: float) -> tuple[float, int]:
    """Return the smallest ε over `orders` and the position of the order that gives it."""
    if not np.any(np.isfinite(rdp)):
        return math.inf, 0
    from dp_accounting.rdp import compute_epsilon

    epsilon, order = compute_epsilon(orders, rdp, open_probability("delta", delta))
    return float(epsilon), int(np.searchsorted(orders, order))


def _curve(mechanisms: Sequence[Mechanism], low: int, high: int) -> np.ndarray:
    total = np.zeros(high - low)
    with np.errstate(over="ignore"):  # past the range of a double: no order says anything
        for step, number in collapse(mechanisms):
            total += number * _step_curve(step, low, high)
    return total


@lru_cache(maxsize=4096)
def _step_curve(step: Mechanism, low: int, high: int) -> np.ndarray:
    """Return the RDP of one step at ORDERS[low:high], read-only."""
    orders = ORDERS[low:high]
    match step:
        case SubsampledGaussian(q, sigma, _):
            result = _sampled_gaussian(q, sigma, orders)
        case Gaussian(sigma, _):
            result = _sampled_gaussian(1.0, sigma, orders)
        case DiscreteLaplace():
            result = pure_rdp(step.step_epsilon, orders)
        case _:
            assert_never(step)
    result.setflags(write=False)
    return result


def pure_rdp(epsilon: float, orders: np.ndarray) -> np.ndarray:
    """Return the RDP at `orders` of randomised response at `epsilon`, the most of any pure DP.

    With p = e^ε / (1 + e^ε), exp((a-1) RDP) = p^a (1-p)^(1-a) + (1-p)^a p^(1-a) (Mironov 2017,
    Proposition 5).
    """
    a = orders
    with np.errstate(over="ignore"):
        # 1 + 2 sinh(a ε/2) sinh((a-1) ε/2) / cosh(ε/2) keeps its digits where ε is small ...
        x = np.minimum(epsilon * a, 50.0) / 2
        y = np.minimum(epsilon * (a - 1), 50.0) / 2
        small = np.log1p(2 * np.sinh(x) * np.sinh(y) / math.cosh(min(epsilon, 50.0) / 2))
        # ... and e^((a-1) ε) (1 + e^((1-2a) ε)) / (1 + e^-ε) keeps within range where it is large.
        rest = np.log1p(np.exp((1 - 2 * a) * epsilon)) - math.log1p(math.exp(-epsilon))
    values: np.ndarray = np.where(epsilon * a < 50.0, small / (a - 1), epsilon + rest / (a - 1))
    return values


def _sampled_gaussian(q: float, sigma: float, orders: np.ndarray) -> np.ndarray:
    """Return the RDP of one step at `orders` (Mironov, Talwar, Zhang 2019, section 3.3)."""
    if sigma < _MIN_NOISE:
        return np.full_like(orders, math.inf)
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    # `_repaired` replaces what a failed order leaves; the library's warning stays off stderr.
    logging.getLogger("absl").addFilter(_not_about_failed_orders)
    accountant = RdpAccountant(orders).compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)))
    return _repaired(accountant.rdp, q, sigma, orders)


def _repaired(rdp: np.ndarray, q: float, sigma: float, orders: np.ndarray) -> np.ndarray:
    """Return `rdp` with entries that rounding or a failed series spoilt replaced by safe bounds.

    The library's sums may come out at or below zero where the truth is under 1e-12, which many
    steps would turn into an understated ε. For integer n, A_n = E[(1 + q(L-1))^n] has only
    non-negative terms, so its second-order term bounds RDP from below and is exact at n = 2. RDP
    grows with the order, so the value at 2 bounds all orders below it from above.
    """
    whole = np.maximum(np.floor(orders), 2.0)
    with np.errstate(over="ignore"):
        second_order = whole * (whole - 1) / 2 * q**2 * np.expm1(sigma**-2)
        at_two = float(np.log1p(q**2 * np.expm1(sigma**-2)))
    floor = np.log1p(second_order) / (whole - 1)
    if not math.isfinite(at_two):
        at_two = float(rdp[orders == 2.0][0]) if 2.0 in orders else math.inf
    low = np.where((rdp < _ROUNDING) | (rdp > at_two), at_two, rdp)
    high = np.where(np.isfinite(floor), np.maximum(rdp, floor), rdp)
    return np.where(orders < 2.0, low, high)


def _not_about_failed_orders(record: logging.LogRecord) -> bool:
    return "failed to converge" not in record.getMessage()
