"""v-prediction: the cosine-schedule config of Salimans & Ho 2022, in Karras et al.'s terms."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from privacy.errors import InvalidRequest
from synth.denoisers.base import DenoiserConfig


@dataclass(frozen=True)
class V(DenoiserConfig):
    """The EDM form at sigma_data = 1, with t ~ U(t_min, t_max) and sigma(t) = tan(pi t / 2).

    sqrt(cos^-2(pi t/2) - 1), as the paper prints sigma(t), is tan(pi t/2); the latter does not
    cancel near t = 0. In the same way the paper's epsilon_min and epsilon_max, arccosines of
    1/sqrt(1 + e^-log_snr), are arctangents of e^(-log_snr/2).

    Attributes:
        log_snr_min, log_snr_max: range of ln(1/sigma^2) drawn in training.

    Raises:
        InvalidRequest: not -infinity < log_snr_min < log_snr_max < infinity.
    """

    name: ClassVar[str] = "v"

    log_snr_min: float = -9.0
    log_snr_max: float = 13.0

    def __post_init__(self) -> None:
        if not -math.inf < self.log_snr_min < self.log_snr_max < math.inf:
            raise InvalidRequest(
                "v-prediction needs finite log_snr_min < log_snr_max, found "
                f"{self.log_snr_min} and {self.log_snr_max}"
            )

    @property
    def t_min(self) -> float:
        """Smallest time drawn in training (epsilon_min of the paper)."""
        return 2 / math.pi * math.atan(math.exp(-0.5 * self.log_snr_max))

    @property
    def t_max(self) -> float:
        """Largest time drawn in training (epsilon_max of the paper)."""
        return 2 / math.pi * math.atan(math.exp(-0.5 * self.log_snr_min))

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at time t in [0, 1)."""
        return torch.tan(0.5 * math.pi * t)

    def t(self, sigma: Tensor) -> Tensor:
        """Time at which the noise level is sigma."""
        return 2 / math.pi * torch.atan(sigma)

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1 / (sigma^2 + 1)."""
        return 1 / (sigma**2 + 1)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Sigma / sqrt(1 + sigma^2)."""
        return sigma * torch.rsqrt(1 + sigma**2)

    def c_in(self, sigma: Tensor) -> Tensor:
        """1 / sqrt(sigma^2 + 1)."""
        return torch.rsqrt(sigma**2 + 1)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """t(sigma)."""
        return self.t(sigma)

    def weight(self, sigma: Tensor) -> Tensor:
        """(sigma^2 + 1) / sigma^2."""
        return (sigma**2 + 1) / sigma**2

    def quantile(self, u: Tensor) -> Tensor:
        """sigma(t) at t = t_min + (t_max - t_min) u: uniform in t, with which sigma rises."""
        return self.sigma(self.t_min + (self.t_max - self.t_min) * u)
