"""Rényi DP: the accountant that admits, and the filter that budgets use.

The curves are closed forms and series of the papers; dp-accounting and Opacus agree with them to
rounding (`tests/privacy/accounting/test_rdp.py`), and Opacus computes every audit.
"""

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

# Terms of the series at a fractional order: mostly the first number of them is enough, and where
# q is large and the order near one, not even the second.
_TERMS = 128, 1000

# Sums of terms of order one are known to this: a smaller one is nothing but rounding.
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


# The orders α, ascending, shape [A]; read-only. It may grow and never lose one: ledgers name them.
ORDERS: np.ndarray = _orders()


def curve(mechanisms: Sequence[Mechanism]) -> np.ndarray:
    """Return the composed RDP of `mechanisms` at every order of ORDERS, shape [A] float64.

    RDP composes by adding, so curves of parts may be added too. Only the first call for a new type
    and new parameters does real work. Raises InvalidRequest for something that is not a mechanism.
    """
    total = np.zeros_like(ORDERS)
    with np.errstate(over="ignore"):  # past the range of a double: no order says anything
        for step, number in collapse(mechanisms):
            total += number * _step_curve(step)
    return total


def epsilon_of(rdp: np.ndarray, delta: float) -> float:
    """Return ε of an RDP curve, shape [A], at `delta`, minimised over ORDERS.

    Conversion: Canonne, Kamath, Steinke 2020, Proposition 12 (also Balle et al. 2020); and
    δ <= sqrt(1 - exp(-KL)), by which a small enough RDP means ε = 0.
    """
    delta = open_probability("delta", delta)
    if np.any(delta**2 + np.expm1(-rdp) > 0):
        return 0.0
    epsilon = rdp + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)
    return max(0.0, float(np.min(epsilon)))


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


class RDPFilter:
    """Admit a composition while its RDP at one order stays within the budget's bound there.

    The order has to be fixed before anything is released: then the sum may be of mechanisms each
    chosen in view of all earlier outputs (Feldman and Zrnic 2021; Lécuyer 2021). Admitting on
    whichever order happens to suffice is right for one plan fixed in advance, and no filter.

    Order by order `bound` inverts the conversion that `RDPAccountant` uses, so that a plan within
    the bound of some order and a plan whose ε is within the budget are the same. `bound` is the
    largest RDP admitted at each order of ORDERS, shape [A], positive, read-only.

    >>> budget = RDPFilter(epsilon=1.0, delta=1e-5)
    >>> budget.admits(curve([Gaussian(5.0)])), budget.admits(curve([Gaussian(3.0)]))
    (True, False)
    >>> order = budget.best_order(curve([Gaussian(5.0)]))
    >>> [budget.share(curve([Gaussian(sigma)]), order) <= 1 for sigma in (5.0, 3.0)]
    [True, False]
    """

    def __init__(self, epsilon: float, delta: float) -> None:
        self.limit = positive_number("epsilon", epsilon)
        self.delta = open_probability("delta", delta)
        self.bound = _bound(self.limit, self.delta)

    def admits(self, curve: np.ndarray) -> bool:
        """Return whether one plan with the RDP `curve`, shape [A], fixed in advance, is admitted.

        Raises InvalidRequest if `curve` is no RDP curve over ORDERS (fail closed).
        """
        return bool(np.any(_checked(curve) <= self.bound))

    def share(self, curve: np.ndarray, order: float) -> float:
        """Return the share of the budget that `curve` takes at `order`; up to 1 is admitted.

        Raises as `admits`, and on an order that is not one of ORDERS.
        """
        index = position(order)
        return float(_checked(curve)[index] / self.bound[index])

    def require_useful(self, order: float) -> None:
        """Raise InvalidRequest unless something that costs anything is admitted at `order`."""
        # Below this only what is next to nothing is admitted, as ε = 0.
        useful = self.bound > 2 * self.delta**2
        if not useful[position(order)]:
            least = ORDERS[useful].min(initial=math.inf)
            raise InvalidRequest(
                f"RDP order: at {order:g} so small a budget admits nothing; take {least:g} or more."
            )

    def best_order(self, curve: np.ndarray) -> float:
        """Return the order at which `curve` takes the smallest share; raises as `admits`."""
        return float(ORDERS[np.argmin(_checked(curve) / self.bound)])

    def epsilon(self, curve: np.ndarray) -> float:
        """Return the ε that `curve` has spent at the budget's δ; raises as `admits`."""
        return epsilon_of(_checked(curve), self.delta)


def position(order: float) -> int:
    """Return where in ORDERS an order stands; raises InvalidRequest where it is none of them."""
    found = np.flatnonzero(np.equal(ORDERS, order))
    if not len(found):
        shown = ", ".join(f"{each:g}" for each in ORDERS)
        raise InvalidRequest(f"RDP order: expected one of {shown}, found {order!r}.")
    return int(found[0])


def _bound(epsilon: float, delta: float) -> np.ndarray:
    """Return the RDP at which each order's conversion gives exactly `epsilon`.

    Canonne, Kamath, Steinke 2020, Proposition 12, solved for the RDP; and δ <= sqrt(1 -
    exp(-KL)), by which an RDP below -log(1 - δ²) already means ε = 0.
    """
    renyi = epsilon - np.log1p(-1 / ORDERS) + np.log(delta * ORDERS) / (ORDERS - 1)
    # A plan that was calibrated to the whole budget is not refused over its last bit.
    renyi += _ROUNDING
    # The conversion asks for strictly less: a rounding error's width keeps on its side.
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


@lru_cache(maxsize=4096)
def _step_curve(step: Mechanism) -> np.ndarray:
    """Return the RDP of one step at ORDERS, read-only."""
    match step:
        case DiscreteLaplace():
            result = pure_rdp(step.step_epsilon, ORDERS)
        case SubsampledGaussian() | Gaussian() if step.noise_multiplier < _MIN_NOISE:
            result = np.full_like(ORDERS, math.inf)
        case Gaussian(sigma, _):
            result = ORDERS / (2 * sigma**2)
        case SubsampledGaussian(q, sigma, _):
            result = _sampled_gaussian(q, sigma)
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


def _sampled_gaussian(q: float, sigma: float) -> np.ndarray:
    """Return the RDP of one step at ORDERS, shape [A], with q < 1.

    RDP is log A(α) / (α - 1), where A(α) = E[(1 - q + q L)^α] and L is the likelihood ratio of
    N(1, σ²) to N(0, σ²) at a draw from the latter (Mironov, Talwar, Zhang 2019, section 3.3).
    """
    floor = np.floor(ORDERS)
    whole = {n: _log_moment(q, sigma, int(n)) for n in {*floor, *np.ceil(ORDERS)}}
    below, above = (np.array([whole[n] for n in part]) for part in (floor, np.ceil(ORDERS)))
    # log A is convex: between two whole orders it lies below the chord.
    log_a = below + (ORDERS - floor) * (above - below)
    between = floor < ORDERS
    series = _fractional_log_moment(q, sigma, ORDERS[between])
    log_a[between] = np.minimum(log_a[between], series + _ROUNDING)
    return log_a / (ORDERS - 1)


def _log_moment(q: float, sigma: float, order: int) -> float:
    """Return log A(n) at a whole order n >= 1.

    A(n) = sum of binomial(n, k) q^k (1-q)^(n-k) e^(k (k-1) / (2 σ²)) over k = 0, 1, ..., n.
    """
    # The weights add up to one: with e^z - 1 for e^z the sum is A(n) - 1. All its terms are
    # positive, so a tiny one keeps its digits; many steps would multiply what rounding had eaten.
    k = np.arange(2, order + 1)
    z = k * (k - 1) / (2 * sigma**2)
    weights = _log_binomial(order, k) + k * math.log(q) + (order - k) * math.log1p(-q)
    excess = np.logaddexp.reduce(weights + z + np.log(-np.expm1(-z)), initial=-math.inf)
    return float(np.logaddexp(0.0, excess))


def _fractional_log_moment(q: float, sigma: float, orders: np.ndarray) -> np.ndarray:
    """Return an upper bound on log A at fractional `orders`, inf where the series is too slow.

    Section 3.3 of the paper: the expectation is split at z, where both parts of the mixture are
    equal, and either half expanded in powers of the smaller part. Every term counts by its
    absolute value. From some term on signs alternate and terms fall, so that what follows the last
    one is less than it.
    """
    from scipy.special import log_ndtr

    result = np.full_like(orders, math.inf)
    z = sigma**2 * math.log(1 / q - 1) + 0.5
    for terms in _TERMS:
        open_ = np.isinf(result)
        order, i = orders[open_, None], np.arange(terms)
        j = order - i
        lower = i * math.log(q) + j * math.log1p(-q) + _moment(i, sigma) + log_ndtr((z - i) / sigma)
        upper = j * math.log(q) + i * math.log1p(-q) + _moment(j, sigma) + log_ndtr((j - z) / sigma)
        both = _log_binomial(order, i) + np.stack([lower, upper])
        total = np.logaddexp.reduce(both, axis=(0, 2))
        last, before = both[..., -1], both[..., -2]
        done = np.all((last < before) & (last < total - 30), axis=0)
        result[open_] = np.where(done, total, math.inf)
    return result


def _moment(power: np.ndarray, sigma: float) -> np.ndarray:
    """Return log E[L^power], L as in `_sampled_gaussian`."""
    return power * (power - 1) / (2 * sigma**2)


def _log_binomial(n: "float | np.ndarray", k: np.ndarray) -> np.ndarray:
    """Return log of the absolute value of the binomial coefficient, also at fractional n."""
    from scipy.special import gammaln

    result: np.ndarray = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return result
