"""Rényi DP by Opacus: code that shares nothing with the accountant that admits, for audits."""

import math
import warnings
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from privacy.accounting.base import collapse
from privacy.mechanisms import DiscreteLaplace, Mechanism, SubsampledGaussian
from privacy.validation import open_probability


class OpacusRDPAccountant:
    """Rényi accountant of Opacus over Opacus' own orders (1.1 to 10.9 and 12 to 63).

    These are the orders behind the published noise multipliers of DP-SGD work. They end at 63, so
    an epsilon under about 0.4 comes out a little larger than from `RDPAccountant`.
    """

    name: ClassVar[str] = "opacus_rdp"

    def epsilon(self, mechanisms: Sequence[Mechanism], delta: float) -> float:
        """Return an upper bound on epsilon at `delta`; see `Accountant.epsilon`."""
        delta = open_probability("delta", delta)
        steps = collapse(mechanisms)
        if not steps:
            return 0.0
        from opacus.accountants import RDPAccountant as Library
        from opacus.accountants.analysis.rdp import get_privacy_spent

        orders = Library.DEFAULT_ALPHAS
        rdp = np.array([sum(n * step_rdp(step, a) for step, n in steps) for a in orders])
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


def step_rdp(step: Mechanism, order: float) -> float:
    """Return an upper bound on the RDP of one step of `step` at `order` > 1.

    inf where Opacus' series leaves the range of a double. Opacus knows Gaussians only; pure DP
    comes from its closed form, arranged in another way than in the accountant that admits.
    """
    if isinstance(step, DiscreteLaplace):
        return pure_rdp(step.step_epsilon, order)
    q = step.sampling_probability if isinstance(step, SubsampledGaussian) else 1.0
    from opacus.accountants.analysis.rdp import compute_rdp

    sigma, order = step.noise_multiplier, float(order)
    try:
        rdp = float(compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=order))
    except (ValueError, OverflowError, ZeroDivisionError):
        return math.inf
    return math.inf if math.isnan(rdp) else max(rdp, 0.0)


def pure_rdp(epsilon: float, order: float) -> float:
    """Return the RDP at `order` > 1 of randomised response at `epsilon`, the most of pure DP.

    log(cosh((a - 1/2) epsilon) / cosh(epsilon/2)) / (a - 1), which is Mironov 2017, Proposition
    5, with its sums of two exponentials written as hyperbolic cosines.
    """
    ratio = _log_cosh((order - 0.5) * epsilon) - _log_cosh(epsilon / 2)
    return min(ratio / (order - 1), epsilon)


def _log_cosh(x: float) -> float:
    if x < 1.0:
        return math.log1p(2 * math.sinh(x / 2) ** 2)
    return x - math.log(2) + math.log1p(math.exp(-2 * x))
