"""The Gaussian mechanism on Poisson samples: one step of DP-SGD."""

from dataclasses import dataclass
from typing import ClassVar

from privacy.mechanism.base import Repeatable
from privacy.mechanism.checks import positive_number, probability, step_count


@dataclass(frozen=True)
class SubsampledGaussian(Repeatable):
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
