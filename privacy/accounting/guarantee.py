"""Guarantees under other relations than one record added or removed: groups and replacement."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from privacy.accounting.base import MAX_EPSILON, Steps, collapse, round_up
from privacy.accounting.pld import Loss, PLDAccountant, composed, step_loss
from privacy.accounting.rdp import ORDERS, curve, epsilon_of
from privacy.mechanisms import DiscreteLaplace, Gaussian, Mechanism, SubsampledGaussian
from privacy.validation import open_probability, positive_int

# A mixture with more parts than this takes long; its epsilon would be past use as well.
_MAX_PARTS = 64

# The grid's width for epsilon = 1. It costs under 1 % of epsilon; a mixture on a finer one, whose
# losses have no inverse in closed form, takes long.
_GRID = 3e-4

_PLD = "PLD"
_MIXTURE = "PLD of a mixture of Gaussians"
_CONVERSION = "group conversion of RDP"


@dataclass(frozen=True)
class Guarantee:
    """(epsilon, delta)-DP under a stated relation."""

    # Which data sets are neighbours, as text. Adding or removing a record includes putting it to
    # zero, so the number of records stays public.
    relation: str
    records: int  # how many records may be added or removed, or replaced
    epsilon: float  # an upper bound, rounded up to four decimals; inf where nothing can be said
    delta: float  # the requested delta
    method: str  # how epsilon was found


def group(mechanisms: Sequence[Mechanism], delta: float, records: int) -> Guarantee:
    """Return the guarantee for a unit that owns up to k = `records` records.

    The smaller of two bounds, both at the requested delta, and never less than the guarantee for
    one record, which is the smaller of PLD and RDP:

    - privacy loss distributions. Of k records a Poisson sample takes Binomial(k, q), whose
      contributions add up to at most as many clip norms: a mixture of Gaussians at 0, 1, ... k
      (Ganesh 2024, "Tight group-level DP guarantees for DP-SGD with sampling via mixture of
      Gaussians mechanisms"). A plain Gaussian has noise sigma / k over the group's sensitivity,
      discrete Laplace has k times its epsilon.
    - the conversion for any mechanism, by Dwork and Roth 2014, Theorem 2.2; see `_converted`. It
      is the only bound above 64 records and where the library cannot resolve the mixture.
    """
    delta, k = open_probability("delta", delta), positive_int("records", records)
    single = _single(mechanisms, delta)
    if k == 1:
        return _guarantee("add or remove one record", 1, delta, [single], 0.0)
    sampled = any(isinstance(s.step, SubsampledGaussian) for s in collapse(mechanisms))
    bounds = [(k * _converted(curve(mechanisms), delta, k), _CONVERSION)]
    if not sampled or k <= _MAX_PARTS:
        epsilon = _pld_epsilon(tuple(collapse(mechanisms)), delta, k * single[0], _GroupLoss(k))
        bounds.append((epsilon, _MIXTURE if sampled else _PLD))
    return _guarantee(f"add or remove up to {k} records", k, delta, bounds, least=single[0])


def replace_one(mechanisms: Sequence[Mechanism], delta: float) -> Guarantee:
    """Return the guarantee for the replacement of one record by any other.

    The smaller of privacy loss distributions (see `_replaced_loss`; exact for Gaussians) and the
    conversion to a group of two, as a replacement is one removal and one addition. Never less than
    the guarantee for adding or removing one record, which replacing one without effect is.
    """
    delta = open_probability("delta", delta)
    single = _single(mechanisms, delta)
    steps = tuple(collapse(mechanisms))
    bounds = [
        (_pld_epsilon(steps, delta, 2 * single[0], _replaced_loss), _PLD),
        (2 * _converted(curve(mechanisms), delta, 2), _CONVERSION),
    ]
    return _guarantee("replace one record", 1, delta, bounds, least=single[0])


def _guarantee(
    relation: str, records: int, delta: float, bounds: Sequence[tuple[float, str]], least: float
) -> Guarantee:
    epsilon, method = min(bounds)
    return Guarantee(relation, records, round_up(max(epsilon, least)), delta, method)


def _single(mechanisms: Sequence[Mechanism], delta: float) -> tuple[float, str]:
    """Return the epsilon of add/remove of one record, and how it was found."""
    pld = PLDAccountant().epsilon(mechanisms, delta)
    return min((pld, _PLD), (epsilon_of(curve(mechanisms), delta), "RDP"))


def _converted(rdp: np.ndarray, delta: float, records: int) -> float:
    """Return the epsilon of one record whose conversion to `records` = k has the asked `delta`.

    From (epsilon, delta_1) for one record, k records have k epsilon and delta_1 (1 + e^epsilon +
    ... + e^((k-1) epsilon)) (Dwork and Roth 2014, Theorem 2.2, before its last step bounds the
    sum by k e^((k-1) epsilon)). Each order gives delta_1 as a function of epsilon (Canonne,
    Kamath, Steinke 2020, Proposition 12) that falls by a factor e^(alpha-1) where epsilon grows
    by one; the sum grows by e^(k-1) at most. So above alpha = k their product falls, and the
    smallest epsilon at which some order keeps `delta` is found by halving.
    """
    usable = (records < ORDERS) & np.isfinite(rdp)
    if not usable.any():
        return math.inf
    orders, rdp = ORDERS[usable], rdp[usable]
    powers = np.arange(records)

    def exceeds(epsilon: float) -> bool:
        one = (orders - 1) * (rdp - epsilon + np.log1p(-1 / orders)) - np.log(orders)
        return bool(np.min(one) + np.logaddexp.reduce(powers * epsilon) > math.log(delta))

    if not exceeds(0.0):
        return 0.0
    lower, upper = 0.0, 1.0
    while exceeds(upper):
        lower, upper = upper, 2 * upper
    while upper - lower > 1e-9 * upper:
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if exceeds(middle) else (lower, middle)
    return upper


@lru_cache(maxsize=128)
def _pld_epsilon(steps: tuple[Steps, ...], delta: float, scale: float, loss: Loss) -> float:
    """Return epsilon of the composition by `loss`, inf where the library cannot resolve it."""
    if not steps:
        return 0.0
    total = _distribution(steps, scale, loss)
    return math.inf if total is None else float(total.get_epsilon_for_delta(delta))


def _distribution(steps: tuple[Steps, ...], scale: float, loss: Loss) -> Any | None:
    """Return the library's distribution of the composed loss, None where it cannot resolve it.

    `scale`, about epsilon, sets the grid's width and cannot make a bound wrong.
    """
    if scale > MAX_EPSILON:
        return None
    try:
        return composed(steps, max(_GRID * scale, 1e-6), loss)
    except (ValueError, RecursionError):
        # The numbers left the library's range: its search for a cut-off found none, or never
        # ended.
        return None


def group_distribution(mechanisms: Sequence[Mechanism], delta: float, records: int) -> Any | None:
    """Return the library's distribution of what k = `records` records lose together.

    It is that by which `group` finds its epsilon at `delta`. None where the library cannot resolve
    it. There is at least one mechanism.
    """
    steps, single = tuple(collapse(mechanisms)), _single(mechanisms, delta)[0]
    sampled = any(isinstance(s.step, SubsampledGaussian) for s in steps)
    if sampled and records > _MAX_PARTS:
        return None
    return _distribution(steps, records * single, _GroupLoss(records))


@dataclass(frozen=True)
class _GroupLoss:
    """The loss of one step when up to `records` records are added or removed."""

    records: int

    def __call__(self, step: Mechanism, interval: float) -> Any:
        if not isinstance(step, SubsampledGaussian):
            return step_loss(_with_less_noise(step, self.records), interval)
        from dp_accounting.pld import privacy_loss_distribution as library
        from scipy.stats import binom

        taken = np.arange(self.records + 1)
        return library.from_mixture_gaussian_mechanism(
            step.noise_multiplier,
            sensitivities=taken,
            sampling_probs=binom.pmf(taken, self.records, step.sampling_probability),
            value_discretization_interval=interval,
        )


def _replaced_loss(step: Mechanism, interval: float) -> Any:
    """Return the loss of one step when a record is replaced: its contribution moves by 2 C.

    Without sampling that is half the noise. With sampling, all contributions over C, the step
    gives P = (1-q) N(0) + q N(g) or Q = (1-q) N(0) + q N(h) with |g|, |h| <= 1, and the pair at
    g = 1, h = -1 in one dimension dominates all others. For beta >= 1, P - beta Q is q times
    N(g) - b ((1-t) N(0) + t N(h)) with b = 1 + (beta-1)/q and t = beta/b (Balle, Barthe, Gaboardi
    2018, Theorem 2). By Neyman and Pearson an event that has probability p under N(g) has at
    least Phi(Phi^-1(p) - d/sigma) under a Gaussian at distance d, and a half-line has exactly
    that. So no event has more than a half-line when all distances lie in one direction, and
    larger distances give more; they are at most |g| = 1 and |g - h| = 2. For beta < 1 the same
    holds with P and Q exchanged.
    """
    if not isinstance(step, SubsampledGaussian):
        return step_loss(_with_less_noise(step, 2), interval)
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as library

    return library.from_gaussian_mechanism(
        step.noise_multiplier,
        sampling_prob=step.sampling_probability,
        value_discretization_interval=interval,
        neighboring_relation=NeighboringRelation.REPLACE_ONE,
    )


def _with_less_noise(step: Gaussian | DiscreteLaplace, factor: int) -> Mechanism:
    """Return `step` with its noise measured against `factor` times its sensitivity."""
    return type(step)(step.noise_multiplier / factor)
