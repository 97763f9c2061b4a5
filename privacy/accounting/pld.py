"""Privacy loss distributions by dp-accounting, rounded pessimistically: the tight cross-check."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from privacy.accounting.base import Steps, check_delta, collapse, merge_gaussians
from privacy.accounting.rdp import RDPAccountant
from privacy.mechanism import Mechanism

# An epsilon past this protects nobody; the array that holds its losses could fill the memory.
MOST_EPSILON = 500.0


class PLDAccountant:
    """Discretised privacy loss, both directions of add/remove (Koskela et al. 2020; Doroshenko
    et al. 2022, "connect the dots").

    Rounding is pessimistic at any interval, so RDP, which only sets the scale of the interval,
    cannot make the bound wrong.
    """

    name: ClassVar[str] = "pld"

    def epsilon(self, mechanisms: Sequence[Mechanism], delta: float) -> float:
        """Returns an upper bound on epsilon at `delta`; inf above MOST_EPSILON."""
        delta = check_delta(delta)
        steps = merge_gaussians(collapse(mechanisms))
        scale = RDPAccountant().epsilon(mechanisms, delta)
        if not steps:
            return 0.0
        if scale > MOST_EPSILON:
            return math.inf
        return _epsilon(tuple(steps), delta, scale)


@lru_cache(maxsize=256)
def _epsilon(steps: tuple[Steps, ...], delta: float, scale: float) -> float:
    """Compose and convert; cached, since a plan, its report and its audit ask for the same."""
    from dp_accounting.pld import privacy_loss_distribution

    interval = _interval(scale)
    total = privacy_loss_distribution.identity(value_discretization_interval=interval)
    for q, sigma, count in steps:
        step = privacy_loss_distribution.from_gaussian_mechanism(
            sigma,
            sampling_prob=q,
            value_discretization_interval=interval,
            pessimistic_estimate=True,
        )
        total = total.compose(step.self_compose(count))
    return float(total.get_epsilon_for_delta(delta))


def _interval(scale: float) -> float:
    """Returns the grid's width: 1e-4, finer below epsilon 0.1 and coarser above 10.

    A fixed width would overstate a small epsilon many times over and make the arrays of a large
    one needlessly long.
    """
    return max(min(1e-4, 1e-3 * max(scale, 1e-3)), 1e-5 * scale)
