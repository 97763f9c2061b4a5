"""The Gaussian mechanism over all records."""

from dataclasses import dataclass
from typing import ClassVar

from privacy.mechanism.base import Repeatable
from privacy.mechanism.checks import positive_number, step_count


@dataclass(frozen=True)
class Gaussian(Repeatable):
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
