"""The mechanisms a run may use: frozen, strictly checked, and recorded by their raw parameters."""

import dataclasses
from collections.abc import Mapping

from privacy.errors import InvalidRequest
from privacy.mechanism.checks import MAX_STEPS, positive_number, probability, step_count
from privacy.mechanism.discrete_laplace import DiscreteLaplace
from privacy.mechanism.gaussian import Gaussian
from privacy.mechanism.subsampled_gaussian import SubsampledGaussian

Mechanism = SubsampledGaussian | Gaussian | DiscreteLaplace

# The ledger keeps these names for ever: their meaning may never change, only new ones be added,
# at the end: the order is that in which accountants add costs up.
MECHANISMS: dict[str, type[Mechanism]] = {
    SubsampledGaussian.record_type: SubsampledGaussian,
    Gaussian.record_type: Gaussian,
    DiscreteLaplace.record_type: DiscreteLaplace,
}

__all__ = [
    "MAX_STEPS",
    "MECHANISMS",
    "DiscreteLaplace",
    "Gaussian",
    "Mechanism",
    "SubsampledGaussian",
    "from_record",
    "positive_number",
    "probability",
    "step_count",
]


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
