"""The contract of all accountants, and the canonical form in which they read mechanisms."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context, Decimal
from typing import ClassVar, NamedTuple, Protocol

from privacy.errors import InvalidRequest
from privacy.mechanisms import MECHANISMS, Gaussian, Mechanism, SubsampledGaussian

# Enough digits for the exact decimal expansion of any double.
_EXACT = Context(prec=1100)


def round_up(epsilon: float, digits: int = 4) -> float:
    """Return the least number with `digits` decimals that is not below `epsilon`.

    Works on the exact decimal expansion of the double, so 0.1 (which lies above one tenth) rounds
    up to 0.1001 at four digits. Infinity stays infinite. Raises InvalidRequest for NaN or a
    negative epsilon, or digits outside 0 to 15.
    """
    if not 0 <= digits <= 15:
        raise InvalidRequest(f"digits: expected a number from 0 to 15, found {digits!r}.")
    if math.isnan(epsilon) or epsilon < 0:
        raise InvalidRequest(f"epsilon: expected a number of at least 0, found {epsilon!r}.")
    if math.isinf(epsilon):
        return math.inf
    unit = Decimal(1).scaleb(-digits)
    return float(Decimal(epsilon).quantize(unit, rounding=ROUND_CEILING, context=_EXACT))


# More noise than this counts as this much: it keeps squares within the range of a double, and
# counting less noise than there is errs on the safe side.
MAX_NOISE = 1e8

# An ε past this protects nobody. exp() of it leaves the range of a double, and the array that
# holds the losses could fill the memory.
MAX_EPSILON = 500.0


class Accountant(Protocol):
    """Turns mechanisms into a guarantee under add/remove of one record."""

    name: ClassVar[str]  # the key in the registry and in specs

    def epsilon(self, mechanisms: Sequence[Mechanism], delta: float) -> float:
        """Return an upper bound on epsilon for the composition of `mechanisms` at `delta`.

        No mechanism at all costs 0. Where the accountant can state nothing, the bound is inf.
        Raises InvalidRequest for a bad `delta`, or for something that is not a mechanism.
        """
        ...


class Steps(NamedTuple):
    """A number of equal steps."""

    step: Mechanism  # one of them, a mechanism with `steps` 1
    number: int  # how many there are; unlike the steps of a mechanism, without an upper end


def collapse(mechanisms: Sequence[Mechanism]) -> list[Steps]:
    """Return `mechanisms` with equal steps counted together, in a canonical order.

    A sampled Gaussian with q = 1 is the plain one, and noise above MAX_NOISE counts as that much.
    The order is that of MECHANISMS, then of the parameters: it makes an epsilon independent of the
    order of composition to the last bit, so that an audit reproduces the number that was printed.
    Raises InvalidRequest for something that is not a mechanism.
    """
    counts: defaultdict[Mechanism, int] = defaultdict(int)
    for mechanism in mechanisms:
        counts[_one_step(mechanism)] += mechanism.steps
    return [Steps(step, counts[step]) for step in sorted(counts, key=_rank)]


def _one_step(mechanism: Mechanism) -> Mechanism:
    if not isinstance(mechanism, Mechanism):
        raise InvalidRequest(f"Expected a mechanism, found {type(mechanism).__name__}.")
    noise = min(mechanism.noise_multiplier, MAX_NOISE)
    if isinstance(mechanism, SubsampledGaussian):
        q = mechanism.sampling_probability
        return SubsampledGaussian(q, noise, 1) if q < 1.0 else Gaussian(noise)
    return type(mechanism)(noise)


def _rank(step: Mechanism) -> tuple[int, tuple[float, ...]]:
    return list(MECHANISMS).index(step.record_type), dataclasses.astuple(step)


def merge_gaussians(steps: Sequence[Steps]) -> list[Steps]:
    """Return `steps` with all plain Gaussian ones replaced by a single equivalent one.

    Exact: Gaussian releases at sigma_1, sigma_2, ... have the privacy loss of one release at (sum
    1/sigma_i^2)^(-1/2), as their joint output has a Gaussian sufficient statistic. Raises
    InvalidRequest where so much is composed that the equivalent noise is subnormal.
    """
    plain = [s for s in steps if isinstance(s.step, Gaussian)]
    if not plain:
        return list(steps)
    rest = [s for s in steps if not isinstance(s.step, Gaussian)]
    root_precision = math.hypot(*(math.sqrt(n) / step.noise_multiplier for step, n in plain))
    return [*rest, Steps(Gaussian(1.0 / root_precision), 1)]
