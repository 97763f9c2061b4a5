"""A denoiser D(x; sigma, y) from a raw network, and what every config has to say.

A config is the triplet (denoiser, noise distribution p(sigma), weighting lambda(sigma)):
D(x; sigma, y) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma), y)
(Karras et al. 2022, eq. 7; the four configs are those of Dockhorn et al. 2023). Score of the
noised data: (D - x) / sigma^2.

Shapes: B batch, C channels, H and W pixels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class DenoiserConfig(ABC):
    """One preconditioning, its noise distribution and its loss weighting.

    Subclasses are frozen dataclasses whose fields are the config's constants. None may be measured
    on the data: that would cost privacy. All functions work element by element and keep shape and
    dtype.
    """

    name: ClassVar[str]

    @abstractmethod
    def c_skip(self, sigma: Tensor) -> Tensor:
        """Scale of the input that skips the network."""

    @abstractmethod
    def c_out(self, sigma: Tensor) -> Tensor:
        """Scale of the network's output."""

    @abstractmethod
    def c_in(self, sigma: Tensor) -> Tensor:
        """Scale of the network's input."""

    @abstractmethod
    def c_noise(self, sigma: Tensor) -> Tensor:
        """The noise level as the network is told it."""

    @abstractmethod
    def weight(self, sigma: Tensor) -> Tensor:
        """Loss weighting lambda(sigma)."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """Noise level below which p(sigma) has probability u: a draw of it where u ~ U(0, 1).

        Args:
            u: float64 in the open interval (0, 1), any shape.

        Returns:
            float64 of the same shape, positive, rising with u.
        """


class Denoiser(nn.Module):
    """D(x; sigma, y): a raw network under a config's preconditioning.

    The network runs in the dtype of its own parameters whatever x is; the sum c_skip x + c_out F
    is formed in the dtype of x, so a sampler may keep its state in float64.

    Args:
        network: F(x [B, C, H, W], c_noise [B], label [B] or None) -> [B, C, H, W].
        config: the preconditioning; `loss.DenoisingLoss` takes the same one.
    """

    def __init__(self, network: nn.Module, config: DenoiserConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Estimate the clean image.

        Args:
            x: [B, C, H, W] noisy images.
            sigma: [B] noise levels, positive.
            label: [B] integers, the network's null index for "no label".

        Returns:
            [B, C, H, W] in the dtype of x.
        """
        c_skip, c_out, c_in = (
            c(sigma).to(x.dtype)[:, None, None, None]
            for c in (self.config.c_skip, self.config.c_out, self.config.c_in)
        )
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        c_noise = self.config.c_noise(sigma).to(dtype)
        F_BCHW = self.network((c_in * x).to(dtype), c_noise, label)
        return c_skip * x + c_out * F_BCHW.to(x.dtype)
