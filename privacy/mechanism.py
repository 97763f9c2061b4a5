"""The mechanisms a run may use: frozen, strictly checked, and recorded by their raw parameters."""

import dataclasses
import math
import numbers
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from privacy.errors import InvalidRequest

# Every integer up to here is exact in a double and in JSON.
MAX_STEPS = 2**53


def positive_number(name: str, value: object) -> float:
    """Returns `value` as a float if it is a positive, finite, normal number.

    Args:
        name: what the number is called in the error.
        value: any real number; booleans and strings are not numbers here.

    Raises:
        InvalidRequest: for anything else. Subnormal numbers are refused because their relative
            precision is too poor to account with.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidRequest(
            f"{name}: expected a positive number, found {value!r} ({type(value).__name__})."
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < sys.float_info.min:
        raise InvalidRequest(
            f"{name}: expected a positive, finite number that is not subnormal, found {number!r}."
        )
    return number


def probability(name: str, value: object) -> float:
    """Returns `value` as a float in (0, 1]; raises InvalidRequest for anything else."""
    number = positive_number(name, value)
    if number > 1.0:
        raise InvalidRequest(f"{name}: expected a probability in (0, 1], found {number!r}.")
    return number


def step_count(name: str, value: object) -> int:
    """Returns `value` as an int in [1, MAX_STEPS]; raises InvalidRequest for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidRequest(
            f"{name}: expected a whole number, found {value!r} ({type(value).__name__})."
        )
    count = int(value)
    if not 1 <= count <= MAX_STEPS:
        raise InvalidRequest(f"{name}: expected a number from 1 to 2**53, found {count}.")
    return count


@dataclass(frozen=True)
class SubsampledGaussian:
    """`steps` Gaussian releases, each over a fresh Poisson sample of the records.

    Each step takes every record independently with probability q, sums contributions of norm at
    most C and adds N(0, (noise_multiplier * C)^2). Relation: add or remove one record.

    Attributes:
        sampling_probability: q in (0, 1].
        noise_multiplier: sigma_DP, noise standard deviation over sensitivity.
        steps: T, how often the step is run.

    Raises:
        InvalidRequest: if a parameter is not a normal number in its range.
    """

    sampling_probability: float
    noise_multiplier: float
    steps: int

    record_type: ClassVar[str] = "subsampled_gaussian"

    def __post_init__(self) -> None:
        q = probability("sampling_probability", self.sampling_probability)
        object.__setattr__(self, "sampling_probability", q)
        sigma = positive_number("noise_multiplier", self.noise_multiplier)
        object.__setattr__(self, "noise_multiplier", sigma)
        object.__setattr__(self, "steps", step_count("steps", self.steps))

    def with_steps(self, steps: int) -> Self:
        """Returns the same mechanism run for `steps` steps; raises InvalidRequest below 1."""
        return dataclasses.replace(self, steps=steps)

    def to_record(self) -> dict[str, str | float | int]:
        """Returns the type's name and the raw parameters, ready for canonical JSON."""
        return {"type": self.record_type, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Gaussian:
    """`steps` Gaussian releases over all records.

    Attributes:
        noise_multiplier: sigma, noise standard deviation over sensitivity.
        steps: how often the release is made.

    Raises:
        InvalidRequest: if a parameter is not a normal number in its range.
    """

    noise_multiplier: float
    steps: int = 1

    record_type: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        sigma = positive_number("noise_multiplier", self.noise_multiplier)
        object.__setattr__(self, "noise_multiplier", sigma)
        object.__setattr__(self, "steps", step_count("steps", self.steps))

    def with_steps(self, steps: int) -> Self:
        """Returns the same mechanism run for `steps` steps; raises InvalidRequest below 1."""
        return dataclasses.replace(self, steps=steps)

    def to_record(self) -> dict[str, str | float | int]:
        """Returns the type's name and the raw parameters, ready for canonical JSON."""
        return {"type": self.record_type, **dataclasses.asdict(self)}


Mechanism = SubsampledGaussian | Gaussian

# The ledger keeps these names for ever: their meaning may never change, only new ones be added.
MECHANISMS: dict[str, type[SubsampledGaussian] | type[Gaussian]] = {
    SubsampledGaussian.record_type: SubsampledGaussian,
    Gaussian.record_type: Gaussian,
}


def from_record(record: Mapping[str, object]) -> Mechanism:
    """Builds the mechanism that `to_record` wrote down.

    Every key has to be there and no other: a default silently filled in, or a parameter silently
    ignored, would change what a ledger row means.

    Raises:
        InvalidRequest: for an unknown type, a missing or extra key, or a bad value.
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
