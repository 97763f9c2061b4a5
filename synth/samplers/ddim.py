"""DDIM, and stochastic DDIM: Euler-Maruyama on the reverse SDE in sigma."""

import math
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from synth.samplers.base import Denoise, Sampler, standard_normal


class DDIM(Sampler):
    """x_{n+1} = x_n + (sigma_{n+1} - sigma_n)/sigma_n (x_n - d_n), d_n = D(x_n; sigma_n).

    It ends with x_M = D(x_{M-1}; sigma_{M-1}), which is the same step to sigma = 0. One evaluation
    a level; order 1. Dockhorn et al. 2023.
    """

    name: ClassVar[str] = "ddim"

    def solve(
        self, denoise: Denoise, x: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Carry x from sigma_max to a clean image; the generator is not used."""
        sigmas = self.sigmas
        for sigma, lower in pairwise(sigmas):
            x = x + (lower - sigma) / sigma * (x - denoise(x, sigma, labels))
        return denoise(x, sigmas[-1], labels)


class StochasticDDIM(Sampler):
    """Twice DDIM's drift, and sqrt(2 (sigma_n - sigma_{n+1}) sigma_n) z_n of fresh noise a step.

    x_{n+1} = x_n + 2 (sigma_{n+1} - sigma_n)/sigma_n (x_n - d_n) + sqrt(...) z_n, ending with
    x_M = D(x_{M-1}; sigma_{M-1}). One evaluation a level. Dockhorn et al. 2023.
    """

    name: ClassVar[str] = "ddim-stochastic"

    def solve(
        self, denoise: Denoise, x: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Carry x from sigma_max to a clean image along one random path."""
        sigmas = self.sigmas
        for sigma, lower in pairwise(sigmas):
            drift = 2 * (lower - sigma) / sigma * (x - denoise(x, sigma, labels))
            noise = math.sqrt(2 * (sigma - lower) * sigma) * standard_normal(x, generator)
            x = x + drift + noise
        return denoise(x, sigmas[-1], labels)
