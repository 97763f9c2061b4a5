"""VP: the variance-preserving config of Song et al. 2021, in Karras et al.'s terms."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from privacy.errors import InvalidRequest
from synth.denoisers.base import DenoiserConfig


@dataclass(frozen=True)
class VP(DenoiserConfig):
    """D = x - sigma F, with t ~ U(epsilon_t, 1).

    sigma(t) = sqrt(exp(beta_d t^2/2 + beta_min t) - 1).

    Attributes:
        beta_d, beta_min: the schedule's slope and start.
        epsilon_t: smallest time drawn in training.
        M: number of times the network's noise label counts.

    Raises:
        InvalidRequest: a constant is not positive and finite, or epsilon_t is not below 1.
    """

    name: ClassVar[str] = "vp"

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon_t: float = 1e-5
    M: int = 1000

    def __post_init__(self) -> None:
        if not (0 < self.beta_d < math.inf and 0 < self.beta_min < math.inf):
            raise InvalidRequest(
                "VP needs positive, finite beta_d and beta_min, found "
                f"{self.beta_d} and {self.beta_min}"
            )
        if not 0 < self.epsilon_t < 1:
            raise InvalidRequest(f"VP needs 0 < epsilon_t < 1, found {self.epsilon_t}")
        if not 1 < self.M < math.inf:
            raise InvalidRequest(f"VP needs M of at least 2 times, found {self.M}")

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at time t."""
        return torch.sqrt(torch.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t))

    def t(self, sigma: Tensor) -> Tensor:
        """Time at which the noise level is sigma: the root of the quadratic in `sigma(t)`.

        Written so that nothing cancels where sigma is small.
        """
        exponent = torch.log1p(sigma**2)
        root = torch.sqrt(self.beta_min**2 + 2 * self.beta_d * exponent)
        return 2 * exponent / (self.beta_min + root)

    def c_skip(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        """-sigma."""
        return -sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        """1 / sqrt(sigma^2 + 1)."""
        return torch.rsqrt(sigma**2 + 1)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """(M - 1) t(sigma)."""
        return (self.M - 1) * self.t(sigma)

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / sigma^2."""
        return sigma**-2

    def quantile(self, u: Tensor) -> Tensor:
        """sigma(t) at t = epsilon_t + (1 - epsilon_t) u: uniform in t, with which sigma rises."""
        return self.sigma(self.epsilon_t + (1 - self.epsilon_t) * u)
