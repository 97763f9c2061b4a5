"""Churn: EDM's stochastic Heun sampler (Karras et al. 2022, algorithm 2)."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from privacy.errors import InvalidRequest
from synth.samplers.base import Denoise, Sampler, standard_normal


@dataclass(frozen=True)
class Churn(Sampler):
    """Each step first adds noise (where S_min <= sigma_n <= S_max), then takes a step of Heun's.

    gamma_n = min(S_churn/M, sqrt(2) - 1), raised = (1 + gamma_n) sigma_n,
    x~ = x + sqrt(raised^2 - sigma_n^2) S_noise z; Euler from (x~, raised) to sigma_{n+1}, then the
    trapezoidal correction, but where sigma_{n+1} = 0. With S_churn = 0 it is Heun's deterministic
    method, of order 2. The paper's best settings hang on the data set and on epsilon; the defaults
    are those for accuracy on MNIST at epsilon = 1.

    Attributes:
        S_churn: total amount of noise added, spread over the steps.
        S_min, S_max: the levels that get it.
        S_noise: its standard deviation; a little over 1 makes up for over-denoising.

    Raises:
        InvalidRequest: as `Sampler`, or S_churn or S_min negative, S_max below S_min, S_noise not
            positive and finite.
    """

    name: ClassVar[str] = "churn"

    steps: int = 1000
    S_churn: float = 10.0
    S_min: float = 0.1
    S_max: float = 50.0
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.S_churn < math.inf:
            raise InvalidRequest(f"churn needs a finite S_churn >= 0, found {self.S_churn}")
        # S_max = infinity is Karras et al.'s own "no upper limit".
        if not 0 <= self.S_min <= self.S_max:
            raise InvalidRequest(
                f"churn needs 0 <= S_min <= S_max, found S_min={self.S_min}, S_max={self.S_max}"
            )
        if not 0 < self.S_noise < math.inf:
            raise InvalidRequest(f"churn needs a positive, finite S_noise, found {self.S_noise}")

    @property
    def nfe(self) -> int:
        """Two a step, but one for the last, which goes to sigma = 0."""
        return 2 * self.steps - 1

    def gamma(self, sigma: float) -> float:
        """Return how much the level is raised before the step from sigma, relative to sigma."""
        if not self.S_min <= sigma <= self.S_max:
            return 0.0
        return min(self.S_churn / self.steps, math.sqrt(2) - 1)

    def solve(
        self, denoise: Denoise, x: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Carry x from sigma_max to a clean image along one random path."""
        for sigma, lower in pairwise([*self.sigmas, 0.0]):
            gamma = self.gamma(sigma)
            raised = (1 + gamma) * sigma
            if gamma > 0:
                added = math.sqrt(raised**2 - sigma**2) * self.S_noise
                x = x + added * standard_normal(x, generator)
            slope = (x - denoise(x, raised, labels)) / raised
            euler = x + (lower - raised) * slope
            if lower > 0:
                end_slope = (euler - denoise(euler, lower, labels)) / lower
                x = x + (lower - raised) * (slope + end_slope) / 2
            else:
                x = euler
        return x
