"""Privacy loss distributions by dp-accounting, rounded pessimistically: the tight cross-check."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any, ClassVar, assert_never

from privacy.accounting.base import MAX_EPSILON, Steps, collapse, merge_gaussians
from privacy.accounting.rdp import RDPAccountant
from privacy.mechanisms import DiscreteLaplace, Gaussian, Mechanism, SubsampledGaussian
from privacy.validation import open_probability

# What one step loses on a grid of the given interval, as an object of the library.
Loss = Callable[[Mechanism, float], Any]


class PLDAccountant:
    """Discretised privacy loss, both directions of add/remove (Koskela et al. 2020; Doroshenko
    et al. 2022, "connect the dots").

    Rounding is pessimistic at any interval, so RDP, which only sets the scale of the interval,
    cannot make the bound wrong.
    """

    name: ClassVar[str] = "pld"

    def epsilon(self, mechanisms: Sequence[Mechanism], delta: float) -> float:
        """Return an upper bound on epsilon at `delta`; inf above MAX_EPSILON."""
        delta = open_probability("delta", delta)
        scale = RDPAccountant().epsilon(mechanisms, delta)
        if not mechanisms:
            return 0.0
        if scale > MAX_EPSILON:
            return math.inf
        return _epsilon(tuple(collapse(mechanisms)), delta, scale)


@lru_cache(maxsize=256)
def _epsilon(steps: tuple[Steps, ...], delta: float, scale: float) -> float:
    """Compose and convert; cached, since a plan, its report and its audit ask for the same."""
    return float(composed(steps, interval_for(steps, scale)).get_epsilon_for_delta(delta))


def step_loss(step: Mechanism, interval: float) -> Any:
    """Return the library's privacy loss distribution of one step on a grid of `interval`."""
    from dp_accounting.pld import privacy_loss_distribution as library

    match step:
        case SubsampledGaussian(q, sigma, _):
            return library.from_gaussian_mechanism(
                sigma, sampling_prob=q, value_discretization_interval=interval
            )
        case Gaussian(sigma, _):
            return library.from_gaussian_mechanism(sigma, value_discretization_interval=interval)
        case DiscreteLaplace():
            # At sensitivity 1 its loss is that of randomised response, the worst of pure DP.
            return library.from_discrete_laplace_mechanism(
                step.step_epsilon, value_discretization_interval=interval, use_connect_dots=True
            )
        case _:
            assert_never(step)


# Few are kept: one holds up to millions of probabilities.
@lru_cache(maxsize=4)
def composed(steps: tuple[Steps, ...], interval: float, loss: Loss = step_loss) -> Any:
    """Return the library's distribution of the summed loss of at least one step.

    Equal losses should compare equal, since results are cached by them.
    """
    each = [loss(s.step, interval).self_compose(s.number) for s in merge_gaussians(steps)]
    return reduce(lambda total, one: total.compose(one), each)


def interval_for(steps: Sequence[Steps], scale: float) -> float:
    """Return the width of the grid of losses for a composition whose ε is about `scale`.

    The bound's excess is about the number of steps times the width squared (1 to 10 times that
    were measured): a width that keeps the product at 1e-5 of ε is as good as a finer one. Below
    that the width is 1e-4, finer below ε = 0.1, as it would overstate a small ε many times over,
    and coarser above 10, as the arrays would be needlessly long.
    """
    number = sum(s.number for s in merge_gaussians(steps))
    finest = max(min(1e-4, 1e-3 * max(scale, 1e-3)), 1e-5 * scale)
    return max(finest, min(math.sqrt(1e-5 * scale / number), 1e-3 * scale))
