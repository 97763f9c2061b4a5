"""The contract of every sampler.

A sampler takes a function `denoise(x, sigma, labels)` and no data set: it post-processes a private
model and costs no privacy.

Shapes: B batch, C channels, H and W pixels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from privacy.errors import InvalidRequest
from synth.settings import ComponentSettings, NoiseLevels


def karras(levels: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """Return levels sigma_0 = sigma_max > ... > sigma_{levels-1} = sigma_min, in float64.

    sigma_i = (sigma_max^{1/rho} + i/(levels-1) (sigma_min^{1/rho} - sigma_max^{1/rho}))^rho.
    `levels` is at least 2 (Karras et al. 2022, eq. 5).

    >>> [round(sigma, 3) for sigma in karras(4, sigma_min=0.002, sigma_max=80.0, rho=7.0)]
    [80.0, 9.723, 0.47, 0.002]
    """
    i = np.arange(levels, dtype=np.float64) / (levels - 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + i * (low - high)) ** rho
    sigmas[0], sigmas[-1] = sigma_max, sigma_min  # exact, whatever the power rounds to
    return [float(sigma) for sigma in sigmas]


# denoise(x [B, C, H, W] float64, sigma, labels [B]) -> D [B, C, H, W]: one evaluation (NFE) a call.
Denoise = Callable[[Tensor, float, Tensor], Tensor]


class Sampler(NoiseLevels, ComponentSettings, ABC):
    """A sampler: frozen settings and a solver along the noise levels, by default one call a level.

    Raises:
        InvalidRequest: a setting is unknown or refused.
    """

    name: ClassVar[str]

    @property
    def sigmas(self) -> list[float]:
        """The levels, sigma_max first."""
        return karras(self.steps, self.sigma_min, self.sigma_max, self.rho)

    @property
    def nfe(self) -> int:
        """Exact number of calls of `denoise` for one batch."""
        return self.steps

    @abstractmethod
    def solve(
        self, denoise: Denoise, x: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Carry x [B, C, H, W], float64 and noised at sigma_max, to a clean image.

        Differentiable, and x itself is not written to.
        """

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoise,
        labels: Tensor,
        shape: tuple[int, int, int],
        generator: torch.Generator,
    ) -> Tensor:
        """Draw one image for each label.

        Args:
            denoise: D(x; sigma, y), see `guided`.
            labels: [B] integers; the samples come on their device.
            shape: (C, H, W) of an image.
            generator: source of all randomness. Noise is drawn on its device, so with a CPU
                generator it does not depend on the device of the network.

        Returns:
            [B, C, H, W] in float64, clean images on the scale of the training data ([-1, 1], not
            clamped).
        """
        # float64: thousands of small steps from sigma = 80 down to 0.002 are differences of large
        # numbers, and this arithmetic costs little beside the network's.
        like = torch.empty((len(labels), *shape), dtype=torch.float64, device=labels.device)
        x = self.sigmas[0] * standard_normal(like, generator)
        return self.solve(denoise, x, labels, generator)


def standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw N(0, 1) on the generator's device, in shape, dtype and device of `like`."""
    z = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
    return z.to(like.device)


def guided(denoiser: nn.Module, w: float = 0.0, null: int | None = None) -> Denoise:
    """Return the function a sampler takes: D^w = (1 + w) D(x; sigma, y) - w D(x; sigma, null).

    Classifier-free guidance (Ho & Salimans 2021), in the convention of DPDM's tables.

    At w = 0 it is the conditional model itself; otherwise both terms go through the network in one
    batch of twice the size. Either way it is one call for the sampler's NFE.

    Args:
        denoiser: D(x [B, C, H, W], sigma [B], labels [B]).
        w: guidance strength; other than 0 only for a model trained with dropped labels.
        null: the network's index for "no label"; needed where w is not 0.

    Raises:
        InvalidRequest: w is not finite, or it is not 0 and there is no null label.
    """
    if not math.isfinite(w):
        raise InvalidRequest(f"guidance strength w must be finite, found {w}")
    if w == 0:
        return lambda x, sigma, labels: denoiser(x, _levels(x, sigma), labels)
    if null is None:
        raise InvalidRequest(
            f"guidance w={w} needs the index of the null label: train with labels and drop some of "
            "them, or sample with w=0"
        )

    def denoise(x: Tensor, sigma: float, labels: Tensor) -> Tensor:
        both = torch.cat([labels, torch.full_like(labels, null)])
        twice = torch.cat([x, x])
        conditional, unconditional = denoiser(twice, _levels(twice, sigma), both).chunk(2)
        return (1 + w) * conditional - w * unconditional

    return denoise


def _levels(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
