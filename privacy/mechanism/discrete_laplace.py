"""The Laplace mechanism for whole numbers: the geometric mechanism."""

from dataclasses import dataclass
from typing import ClassVar

from privacy.mechanism.base import Repeatable
from privacy.mechanism.checks import positive_number, step_count


@dataclass(frozen=True)
class DiscreteLaplace(Repeatable):
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

    Attributes:
        noise_multiplier: the noise's scale over sensitivity, 1 / epsilon of one step.
        steps: how often the release is made.

    Raises:
        InvalidRequest: if a parameter is not a normal number in its range.
    """

    noise_multiplier: float
    steps: int = 1

    record_type: ClassVar[str] = "discrete_laplace"

    def __post_init__(self) -> None:
        scale = positive_number("noise_multiplier", self.noise_multiplier)
        object.__setattr__(self, "noise_multiplier", scale)
        object.__setattr__(self, "steps", step_count("steps", self.steps))

    @property
    def step_epsilon(self) -> float:
        """The epsilon of one step, at delta = 0."""
        return 1.0 / self.noise_multiplier
