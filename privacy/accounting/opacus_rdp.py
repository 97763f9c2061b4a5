"""Rényi DP by Opacus: code that shares nothing with the accountant that admits, for audits."""

import math
import warnings
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from privacy.accounting.base import check_delta, collapse
from privacy.mechanism import Mechanism


class OpacusRDPAccountant:
    """Rényi accountant of Opacus over Opacus' own orders (1.1 to 10.9 and 12 to 63).

    These are the orders behind the published noise multipliers of DP-SGD work. They end at 63, so
    an epsilon under about 0.4 comes out a little larger than from `RDPAccountant`.
    """

    name: ClassVar[str] = "opacus_rdp"

    def epsilon(self, mechanisms: Sequence[Mechanism], delta: float) -> float:
        """Returns an upper bound on epsilon at `delta`; see `Accountant.epsilon`."""
        delta = check_delta(delta)
        steps = collapse(mechanisms)
        if not steps:
            return 0.0
        from opacus.accountants import RDPAccountant as Library
        from opacus.accountants.analysis.rdp import get_privacy_spent

        orders = Library.DEFAULT_ALPHAS
        rdp = np.array([sum(t * _rdp(q, sigma, a) for q, sigma, t in steps) for a in orders])
        finite = np.isfinite(rdp)
        if not finite.any():
            return math.inf
        with warnings.catch_warnings():
            # A best order at the end of the range loosens the bound and no more.
            warnings.filterwarnings("ignore", message="Optimal order is the")
            epsilon, _ = get_privacy_spent(
                orders=[a for a, ok in zip(orders, finite, strict=True) if ok],
                rdp=rdp[finite],
                delta=delta,
            )
        return max(float(epsilon), 0.0)


def _rdp(q: float, sigma: float, order: float) -> float:
    """Returns the RDP of one step, or inf where Opacus' series leaves the range of a double."""
    from opacus.accountants.analysis.rdp import compute_rdp

    try:
        rdp = float(compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=float(order)))
    except (ValueError, OverflowError, ZeroDivisionError):
        return math.inf
    return math.inf if math.isnan(rdp) else max(rdp, 0.0)
