"""ε again from raw parameters, without the code that admitted."""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from privacy.accounting import accountant
from privacy.accounting.opacus_rdp import step_rdp
from privacy.accounting.rdp import ORDERS
from privacy.accounting.rounding import round_up
from privacy.audit.results import Epsilons
from privacy.errors import InvalidRequest
from privacy.mechanism import Mechanism


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
    with np.errstate(over="ignore"):  # past the range of a double: no order says anything
        for mechanism in mechanisms:
            rdp += mechanism.steps * _one_step(mechanism.with_steps(1))
    finite = np.isfinite(rdp)
    if not finite.any():
        return math.inf
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        epsilon, _ = get_privacy_spent(orders=ORDERS[finite], rdp=rdp[finite], delta=delta)
    return max(float(epsilon), 0.0)


@lru_cache(maxsize=4096)
def _one_step(step: Mechanism) -> np.ndarray:
    return np.array([step_rdp(step, float(order)) for order in ORDERS])


def _by(name: str, mechanisms: Sequence[Mechanism], delta: float) -> float | None:
    try:
        return round_up(accountant(name).epsilon(mechanisms, delta))
    except InvalidRequest:
        return None
