"""VE: the variance-exploding config of Song et al. 2021, in Karras et al.'s terms."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from privacy.errors import InvalidRequest
from synth.denoisers.base import DenoiserConfig


@dataclass(frozen=True)
class VE(DenoiserConfig):
    """D = x + sigma F, with ln sigma ~ U(ln sigma_min, ln sigma_max).

    Attributes:
        sigma_min, sigma_max: range of the noise levels drawn in training.

    Raises:
        InvalidRequest: not 0 < sigma_min < sigma_max < infinity.
    """

    name: ClassVar[str] = "ve"

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InvalidRequest(
                "VE needs 0 < sigma_min < sigma_max < infinity, found "
                f"{self.sigma_min} and {self.sigma_max}"
            )

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Sigma."""
        return sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """ln(sigma / 2)."""
        return torch.log(sigma / 2)

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / sigma^2."""
        return sigma**-2

    def quantile(self, u: Tensor) -> Tensor:
        """sigma_min (sigma_max / sigma_min)^u: uniform in ln sigma."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return torch.exp(low + (high - low) * u)
