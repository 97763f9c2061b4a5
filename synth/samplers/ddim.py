"""Deterministic DDIM: Euler's method on the probability-flow ODE in sigma."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from synth.samplers.base import Denoise, Sampler


@dataclass(frozen=True)
class DDIM(Sampler):
    """x_{n+1} = x_n + (sigma_{n+1} - sigma_n)/sigma_n (x_n - d_n), d_n = D(x_n; sigma_n).

    It ends with x_M = D(x_{M-1}; sigma_{M-1}), which is the same step to sigma = 0. One evaluation
    a level; order 1. Dockhorn et al. 2023.
    """

    name: ClassVar[str] = "ddim"

    steps: int = 50

    @property
    def nfe(self) -> int:
        """One a level."""
        return self.steps

    def solve(
        self, denoise: Denoise, x: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Carry x from sigma_max to a clean image; the generator is not used."""
        sigmas = self.sigmas
        for sigma, lower in pairwise(sigmas):
            x = x + (lower - sigma) / sigma * (x - denoise(x, sigma, labels))
        return denoise(x, sigmas[-1], labels)
