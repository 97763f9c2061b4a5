"""ε again from raw parameters, without the code that admitted."""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from privacy.accounting import accountant
from privacy.accounting.rdp import ORDERS
from privacy.accounting.rounding import round_up
from privacy.audit.results import Epsilons
from privacy.errors import InvalidRequest
from privacy.mechanism import Mechanism, SubsampledGaussian


def epsilons(mechanisms: Sequence[Mechanism], delta: float) -> Epsilons:
    """Return ε of the composition of `mechanisms` at `delta` by three other codes, rounded up."""
    if not mechanisms:
        return Epsilons(0.0, 0.0, 0.0)
    return Epsilons(
        rdp=round_up(opacus_epsilon(mechanisms, delta)),
        pld=_by("pld", mechanisms, delta),
        prv=_by("prv", mechanisms, delta),
    )


def opacus_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Return ε by the RDP code of Opacus, over the orders that the admitting filter uses.

    The same orders, because a sparser grid gives a larger ε and would call an honest ledger
    broken; which orders are tried cannot make an ε too small.
    """
    from opacus.accountants.analysis.rdp import get_privacy_spent

    rdp = np.zeros(len(ORDERS))
    for mechanism in mechanisms:
        q = 1.0
        if isinstance(mechanism, SubsampledGaussian):
            q = mechanism.sampling_probability
        rdp += mechanism.steps * _one_step(q, mechanism.noise_multiplier)
    finite = np.isfinite(rdp)
    if not finite.any():
        return math.inf
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        epsilon, _ = get_privacy_spent(orders=ORDERS[finite], rdp=rdp[finite], delta=delta)
    return max(float(epsilon), 0.0)


def unit_guarantee(epsilon: float, delta: float, records_per_unit: int) -> tuple[float, float]:
    """Return (kε, k·e^{(k−1)ε}·δ): what (ε, δ) for a record promises to an owner of k records.

    Dwork & Roth 2014, Theorem 2.2, with the exact δ of (ε, δ)-DP; δ is capped at 1, where it
    promises nothing.
    """
    k = records_per_unit
    if k == 1:
        return epsilon, delta
    exponent = (k - 1) * epsilon + math.log(k * delta)
    return k * epsilon, 1.0 if exponent >= 0 else math.exp(exponent)


@lru_cache(maxsize=4096)
def _one_step(q: float, sigma: float) -> np.ndarray:
    from opacus.accountants.analysis.rdp import compute_rdp

    values = []
    for order in ORDERS:
        try:
            value = float(compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=float(order)))
        except (ValueError, OverflowError, ZeroDivisionError):
            value = math.inf  # the series left the range of a double: this order says nothing
        values.append(math.inf if math.isnan(value) else max(value, 0.0))
    return np.array(values)


def _by(name: str, mechanisms: Sequence[Mechanism], delta: float) -> float | None:
    try:
        return round_up(accountant(name).epsilon(mechanisms, delta))
    except InvalidRequest:
        return None
