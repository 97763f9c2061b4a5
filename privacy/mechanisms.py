"""The mechanisms a run may use: frozen, strictly checked, recorded by their raw parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from privacy.errors import InvalidRequest
from privacy.validation import positive_int, positive_number, probability


@dataclass(frozen=True)
class MechanismBase:
    """A mechanism that is run `steps` times with equal parameters.

    Raises InvalidRequest if a parameter is not a normal number in its range.
    """

    record_type: ClassVar[str]  # its name in the ledger, kept for ever

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            checked = _CHECKS[field.name](field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, checked)

    def with_steps(self, steps: int) -> Self:
        """Return the same mechanism run for `steps` steps; raises InvalidRequest below 1."""
        return dataclasses.replace(self, steps=steps)  # type: ignore[call-arg]  # all have steps

    def to_record(self) -> dict[str, str | float | int]:
        """Return the type's name and the raw parameters, ready for canonical JSON."""
        return {"type": self.record_type, **dataclasses.asdict(self)}


_CHECKS: dict[str, Callable[[str, object], float]] = {
    "sampling_probability": probability,
    "noise_multiplier": positive_number,
    "steps": positive_int,
}


@dataclass(frozen=True)
class SubsampledGaussian(MechanismBase):
    """`steps` Gaussian releases, each over a fresh Poisson sample of the records.

    Each step takes every record independently with probability q, sums contributions of norm at
    most C and adds N(0, (noise_multiplier * C)^2). Relation: add or remove one record.
    """

    sampling_probability: float  # q in (0, 1]
    noise_multiplier: float  # sigma_DP, noise standard deviation over sensitivity
    steps: int

    record_type: ClassVar[str] = "subsampled_gaussian"


@dataclass(frozen=True)
class Gaussian(MechanismBase):
    """`steps` Gaussian releases over all records."""

    noise_multiplier: float  # sigma, noise standard deviation over sensitivity
    steps: int = 1

    record_type: ClassVar[str] = "gaussian"


@dataclass(frozen=True)
class DiscreteLaplace(MechanismBase):
    """`steps` releases of whole numbers, each with two-sided geometric noise.

    Each step adds an independent k with P[k] proportional to exp(-|k| / (noise_multiplier * s))
    to every coordinate of a vector of whole numbers whose L1 sensitivity is s: the geometric
    mechanism of Ghosh, Roughgarden and Sundararajan 2009. Relation: add or remove one record.

    A step is (1 / noise_multiplier)-DP with delta = 0, whatever s is and however many coordinates
    there are: ||k| - |k - d|| <= |d|, so the loss log P[output | D] / P[output | D'] is at most
    the sum over coordinates of |d_i| / (noise_multiplier * s) <= 1 / noise_multiplier.

    It is accounted as binary randomised response at that epsilon, whose loss takes the values
    +epsilon and -epsilon only. Every epsilon-DP mechanism is a post-processing of that one
    (Kairouz, Oh, Viswanath 2015, Theorem 3.1's proof), so this holds for any sensitivity and any
    number of coordinates; for one coordinate and s = 1 the two are the same. The RDP of the
    continuous Laplace mechanism is smaller and would understate the cost.
    """

    noise_multiplier: float  # the noise's scale over sensitivity, 1 / epsilon of one step
    steps: int = 1

    record_type: ClassVar[str] = "discrete_laplace"

    @property
    def step_epsilon(self) -> float:
        """The epsilon of one step, at delta = 0."""
        return 1.0 / self.noise_multiplier


Mechanism = SubsampledGaussian | Gaussian | DiscreteLaplace

# The ledger keeps these names for ever: their meaning may never change, only new ones be added,
# at the end: the order is that in which accountants add costs up.
MECHANISMS: dict[str, type[Mechanism]] = {
    found.record_type: found for found in (SubsampledGaussian, Gaussian, DiscreteLaplace)
}


def from_record(record: Mapping[str, object]) -> Mechanism:
    """Builds the mechanism that `to_record` wrote down.

    Every key has to be there and no other: a default silently filled in, or a parameter silently
    ignored, would change what a ledger row means. Raises InvalidRequest for an unknown type, a
    missing or extra key, or a bad value.
    """
    if not isinstance(record, Mapping):
        raise InvalidRequest(
            f"mechanism record: expected a mapping, found {type(record).__name__}."
        )
    name = record.get("type")
    mechanism = MECHANISMS.get(name) if isinstance(name, str) else None
    if mechanism is None:
        raise InvalidRequest(
            f"mechanism record: expected 'type' to be one of {sorted(MECHANISMS)}, found {name!r}."
        )
    expected = {"type", *(field.name for field in dataclasses.fields(mechanism))}
    if set(record) != expected:
        missing = sorted(expected - set(record))
        extra = sorted(str(key) for key in set(record) - expected)
        raise InvalidRequest(
            f"mechanism record of type {name!r}: expected the keys {sorted(expected)}; "
            f"missing {missing}, unknown {extra}."
        )
    parameters = {key: value for key, value in record.items() if key != "type"}
    return mechanism(**parameters)  # type: ignore[arg-type]
