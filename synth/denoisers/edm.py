"""EDM: the config of Karras et al. 2022."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from privacy.errors import InvalidRequest
from synth.denoisers.base import DenoiserConfig


@dataclass(frozen=True)
class EDM(DenoiserConfig):
    """Unit-variance inputs and targets at every noise level; ln sigma ~ N(p_mean, p_std^2).

    Attributes:
        p_mean, p_std: of the logarithm of the noise levels drawn in training.
        sigma_data: standard deviation assumed of the data. The default is U(-1, 1)'s; it is fixed
            by the images' type and must never be measured on private data, which would cost
            privacy.

    Raises:
        InvalidRequest: p_mean is not finite, or p_std or sigma_data not positive and finite.
    """

    name: ClassVar[str] = "edm"

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = math.sqrt(1 / 3)

    def __post_init__(self) -> None:
        if not math.isfinite(self.p_mean):
            raise InvalidRequest(f"EDM needs a finite p_mean, found {self.p_mean}")
        if not (0 < self.p_std < math.inf and 0 < self.sigma_data < math.inf):
            raise InvalidRequest(
                "EDM needs positive, finite p_std and sigma_data, found "
                f"{self.p_std} and {self.sigma_data}"
            )

    def c_skip(self, sigma: Tensor) -> Tensor:
        """sigma_data^2 / (sigma^2 + sigma_data^2)."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Sigma sigma_data / sqrt(sigma_data^2 + sigma^2)."""
        return sigma * self.sigma_data * torch.rsqrt(sigma**2 + self.sigma_data**2)

    def c_in(self, sigma: Tensor) -> Tensor:
        """1 / sqrt(sigma^2 + sigma_data^2)."""
        return torch.rsqrt(sigma**2 + self.sigma_data**2)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """ln(sigma) / 4."""
        return torch.log(sigma) / 4

    def weight(self, sigma: Tensor) -> Tensor:
        """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def quantile(self, u: Tensor) -> Tensor:
        """exp(p_mean + p_std Phi^-1(u)), the log-normal's (Karras et al. 2022, table 1)."""
        return torch.exp(self.p_mean + self.p_std * torch.special.ndtri(u))
