"""RDP by Opacus: code that shares nothing with the accountant that admits."""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from privacy.accounting.rdp import ORDERS
from privacy.mechanisms import DiscreteLaplace, Mechanism, SubsampledGaussian


def opacus_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Return ε by the RDP code of Opacus, over the orders that the admitting filter uses."""
    # The same orders, because a sparser grid gives a larger ε and would call an honest ledger
    # broken; which orders are tried cannot make an ε too small.
    from opacus.accountants.analysis.rdp import get_privacy_spent

    rdp = np.zeros(len(ORDERS))
    with np.errstate(over="ignore"):  # beyond the range of a double no order bounds anything
        for mechanism in mechanisms:
            rdp += mechanism.steps * _step_curve(mechanism.with_steps(1))
    finite = np.isfinite(rdp)
    if not finite.any():
        return math.inf
    with warnings.catch_warnings():
        # A best order at the end of the range loosens the bound and no more.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        epsilon, _ = get_privacy_spent(orders=ORDERS[finite], rdp=rdp[finite], delta=delta)
    return max(float(epsilon), 0.0)


def epsilon_at(mechanisms: Sequence[Mechanism], order: float, delta: float) -> float:
    """Return ε at `delta` by the RDP of one order alone, inf where nothing can be said."""
    rdp = sum(m.steps * _bounded_rdp(m.with_steps(1), order) for m in mechanisms)
    if delta**2 + math.expm1(-rdp) > 0:
        return 0.0  # δ <= sqrt(1 - exp(-KL))
    return rdp + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


@lru_cache(maxsize=4096)
def _bounded_rdp(step: Mechanism, order: float) -> float:
    found, low, high = step_rdp(step, order), math.floor(order), math.ceil(order)
    if math.isfinite(found) or low == high:
        return found
    # Where Opacus' series gives up between two whole orders, the chord of (a - 1) RDP, which is
    # convex and zero at a = 1, lies above.
    lower = (low - 1) * step_rdp(step, low) if low > 1 else 0.0
    upper = (high - 1) * step_rdp(step, high)
    return (lower * (high - order) + upper * (order - low)) / (order - 1)


@lru_cache(maxsize=4096)
def _step_curve(step: Mechanism) -> np.ndarray:
    return np.array([step_rdp(step, float(order)) for order in ORDERS])


def step_rdp(step: Mechanism, order: float) -> float:
    """Return an upper bound on the RDP of one step of `step` at `order` > 1.

    inf where Opacus' series leaves the range of a double. Opacus knows Gaussians only; pure DP
    comes from its closed form, arranged in another way than in the accountant that admits.
    """
    if isinstance(step, DiscreteLaplace):
        return _pure_rdp(step.step_epsilon, order)
    q = step.sampling_probability if isinstance(step, SubsampledGaussian) else 1.0
    from opacus.accountants.analysis.rdp import compute_rdp

    try:
        rdp = compute_rdp(q=q, noise_multiplier=step.noise_multiplier, steps=1, orders=order)
    except (ValueError, OverflowError, ZeroDivisionError):
        return math.inf
    return math.inf if math.isnan(rdp) else max(float(rdp), 0.0)


def _pure_rdp(epsilon: float, order: float) -> float:
    """Return the RDP of randomised response at `epsilon`, the largest of any pure DP.

    log(cosh((a - 1/2) ε) / cosh(ε/2)) / (a - 1), which is Mironov 2017, Proposition 5, with its
    sums of two exponentials written as hyperbolic cosines.
    """
    ratio = _log_cosh((order - 0.5) * epsilon) - _log_cosh(epsilon / 2)
    return min(ratio / (order - 1), epsilon)


def _log_cosh(x: float) -> float:
    if x < 1.0:
        return math.log1p(2 * math.sinh(x / 2) ** 2)
    return x - math.log(2) + math.log1p(math.exp(-2 * x))
