"""Privacy random variables by prv-accountant: bounds with a proven numerical error."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from privacy.accounting.base import Steps, check_delta, collapse, merge_gaussians
from privacy.accounting.rdp import RDPAccountant
from privacy.errors import InvalidRequest
from privacy.mechanism import Mechanism

# An epsilon past this protects nobody, and exp() of it leaves the range of a double on machines
# without a longer one.
MOST_EPSILON = 500.0

# The library's error in epsilon, relative to the RDP epsilon; it is added to the bound.
_RELATIVE_ERROR = 0.005
# The grid has 2 L / mesh points; past this many a call takes long and much memory, so the error
# is let grow instead. The bound stays a bound.
_MOST_POINTS = 2**20


class PRVAccountant:
    """Numerical composition of privacy losses (Gopi, Lee, Wutschitz 2021), both directions.

    The library itself knows the removal of a record only. Neither direction dominates the other
    in general once steps are composed (Lebeda, Regehr, Kamath, Steinke 2024), so the addition is
    composed here as well and the larger epsilon counts.
    """

    name: ClassVar[str] = "prv"

    def epsilon(self, mechanisms: Sequence[Mechanism], delta: float) -> float:
        """Returns an upper bound on epsilon at `delta`; inf above MOST_EPSILON.

        Raises:
            InvalidRequest: also where double precision cannot resolve so small a `delta`.
        """
        return self.bounds(mechanisms, delta)[1]

    def bounds(self, mechanisms: Sequence[Mechanism], delta: float) -> tuple[float, float]:
        """Returns a lower and an upper bound on the true epsilon at `delta`.

        Raises:
            InvalidRequest: as `epsilon`.
        """
        delta = check_delta(delta)
        steps = merge_gaussians(collapse(mechanisms))
        scale = RDPAccountant().epsilon(mechanisms, delta)
        if not steps:
            return 0.0, 0.0
        if scale > MOST_EPSILON:
            return 0.0, math.inf
        return _bounds(tuple(steps), delta, scale)


@lru_cache(maxsize=256)
def _bounds(steps: tuple[Steps, ...], delta: float, scale: float) -> tuple[float, float]:
    """Compose both ways; cached, since a plan, its report and its audit ask for the same."""
    removal = _composed(_removal(steps), steps, delta, scale)
    if all(step.sampling_probability == 1.0 for step in steps):
        return removal
    addition = _composed(_addition(steps), steps, delta, scale)
    return max(removal[0], addition[0]), max(removal[1], addition[1])


def _removal(steps: Sequence[Steps]) -> list[Any]:
    from privacy.accounting.sampled_loss import RecordRemoved

    return _losses(steps, RecordRemoved)


def _addition(steps: Sequence[Steps]) -> list[Any]:
    from privacy.accounting.sampled_loss import RecordAdded

    return _losses(steps, RecordAdded)


def _losses(steps: Sequence[Steps], sampled: type[Any]) -> list[Any]:
    """Returns the library's objects; an unsampled Gaussian costs the same in both directions."""
    from prv_accountant import GaussianMechanism

    return [
        GaussianMechanism(noise_multiplier=sigma)
        if q == 1.0
        else sampled(sampling_probability=q, noise_multiplier=sigma)
        for q, sigma, _ in steps
    ]


def _composed(
    prvs: list[Any], steps: Sequence[Steps], delta: float, scale: float
) -> tuple[float, float]:
    """Returns the library's lower and upper epsilon of one direction."""
    from prv_accountant import PRVAccountant as Library

    counts = [step.steps for step in steps]
    delta_error = delta / 1000
    try:
        composition = Library(
            prvs=prvs,
            max_self_compositions=counts,
            eps_error=_epsilon_error(scale, sum(counts), delta_error),
            delta_error=delta_error,
        )
        lower, _, upper = composition.compute_epsilon(delta, counts)
    except (ValueError, RuntimeError, AssertionError, IndexError) as error:
        raise InvalidRequest(
            f"accountant 'prv': cannot resolve delta={delta!r} for {sum(counts)} steps in double "
            "precision. Use 'pld' or 'rdp'."
        ) from error
    if math.isnan(lower) or math.isnan(upper):
        raise InvalidRequest(
            f"accountant 'prv': no result for delta={delta!r}. Use 'pld' or 'rdp'."
        )
    return max(lower, 0.0), max(upper, 0.0)


def _epsilon_error(scale: float, steps: int, delta_error: float) -> float:
    """Returns the error in epsilon to ask for: in proportion to epsilon, as the grid allows.

    The library's mesh is error / sqrt(T/2 log(12/delta_error)) on about [-(scale+3), scale+3]
    (Theorem 5.5 and Remark 5.6 of the paper).
    """
    points_times_error = 2 * (1.5 * scale + 3) * math.sqrt(steps / 2 * math.log(12 / delta_error))
    return max(_RELATIVE_ERROR * scale, points_times_error / _MOST_POINTS)
