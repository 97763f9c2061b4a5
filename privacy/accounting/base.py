"""What every accountant promises, and the form in which mechanisms reach its library."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

from privacy.errors import InvalidRequest
from privacy.mechanism import Gaussian, Mechanism, SubsampledGaussian, positive_number

# More noise than this counts as this much: it keeps squares within the range of a double, and
# counting less noise than there is errs on the safe side.
MOST_NOISE = 1e8


class Accountant(Protocol):
    """Turns mechanisms into a guarantee under add/remove of one record.

    Attributes:
        name: the key in the registry and in specs.
    """

    name: ClassVar[str]

    def epsilon(self, mechanisms: Sequence[Mechanism], delta: float) -> float:
        """Returns an upper bound on epsilon for the composition of `mechanisms` at `delta`.

        No mechanism at all costs 0. Where the accountant can state nothing, the bound is inf.

        Raises:
            InvalidRequest: for a bad `delta`, or for something that is not a mechanism.
        """
        ...


class Steps(NamedTuple):
    """A number of equal steps; sampling_probability 1 is the plain Gaussian mechanism."""

    sampling_probability: float
    noise_multiplier: float
    steps: int


def collapse(mechanisms: Sequence[Mechanism]) -> list[Steps]:
    """Returns `mechanisms` with equal steps counted together, in a canonical order.

    Sorting makes an epsilon independent of the order of composition to the last bit, so that an
    audit reproduces the number that was printed.
    """
    counts: defaultdict[tuple[float, float], int] = defaultdict(int)
    for mechanism in mechanisms:
        if isinstance(mechanism, SubsampledGaussian):
            q = mechanism.sampling_probability
        elif isinstance(mechanism, Gaussian):
            q = 1.0
        else:
            raise InvalidRequest(
                "accounting: expected SubsampledGaussian or Gaussian mechanisms, found "
                f"{type(mechanism).__name__}."
            )
        counts[q, min(mechanism.noise_multiplier, MOST_NOISE)] += mechanism.steps
    return [Steps(q, sigma, steps) for (q, sigma), steps in sorted(counts.items())]


def merge_gaussians(steps: Sequence[Steps]) -> list[Steps]:
    """Returns `steps` with all unsampled ones replaced by a single equivalent Gaussian.

    Exact: Gaussian releases at sigma_1, sigma_2, ... have the privacy loss of one release at
    (sum 1/sigma_i^2)^(-1/2), as their joint output has a Gaussian sufficient statistic.
    """
    sampled = [step for step in steps if step.sampling_probability < 1.0]
    plain = [step for step in steps if step.sampling_probability == 1.0]
    if not plain:
        return sampled
    root_precision = math.hypot(*(math.sqrt(s.steps) / s.noise_multiplier for s in plain))
    return [*sampled, Steps(1.0, 1.0 / root_precision, 1)]


def check_delta(delta: float) -> float:
    """Returns `delta` as a float in (0, 1); raises InvalidRequest for anything else."""
    number = positive_number("delta", delta)
    if number >= 1.0:
        raise InvalidRequest(f"delta: expected a number between 0 and 1, found {number!r}.")
    return number
