"""Churn: EDM's stochastic Heun sampler (Karras et al. 2022, algorithm 2)."""

import math
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from synth.samplers.base import Denoise, Sampler, standard_normal
from synth.settings import ChurnSettings


class Churn(ChurnSettings, Sampler):
    """Each step first adds noise (where S_min <= sigma_n <= S_max), then takes a step of Heun's.

    gamma_n = min(S_churn/M, sqrt(2) - 1), raised = (1 + gamma_n) sigma_n,
    x~ = x + sqrt(raised^2 - sigma_n^2) S_noise z; Euler from (x~, raised) to sigma_{n+1}, then the
    trapezoidal correction, but where sigma_{n+1} = 0. With S_churn = 0 it is Heun's deterministic
    method, of order 2. The paper's best settings depend on the data set and on epsilon.
    """

    name: ClassVar[str] = "churn"

    @property
    def nfe(self) -> int:
        """Two calls a step, but one for the last, which goes to sigma = 0."""
        return 2 * self.steps - 1

    def gamma(self, sigma: float) -> float:
        """Return the noise added before the step from sigma, relative to sigma."""
        if not self.s_min <= sigma <= self.s_max:
            return 0.0
        return min(self.s_churn / self.steps, math.sqrt(2) - 1)

    def solve(
        self, denoise: Denoise, x: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Carry x from sigma_max to a clean image along one random path."""
        for sigma, lower in pairwise([*self.sigmas, 0.0]):
            gamma = self.gamma(sigma)
            raised = (1 + gamma) * sigma
            if gamma > 0:
                added = math.sqrt(raised**2 - sigma**2) * self.s_noise
                x = x + added * standard_normal(x, generator)
            slope = (x - denoise(x, raised, labels)) / raised
            euler = x + (lower - raised) * slope
            if lower > 0:
                end_slope = (euler - denoise(euler, lower, labels)) / lower
                x = x + (lower - raised) * (slope + end_slope) / 2
            else:
                x = euler
        return x
