"""The residual block of DDPM++ and its two BigGAN-style resampling variants.

Shapes: B batch, C channels, H and W pixels, E channels of the embedding.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from synth.networks.attention import SKIP_SCALE, Attention
from synth.networks.norm import group_norm

Resample = Literal["none", "down", "up"]


def resampled(x: Tensor, resample: Resample) -> Tensor:
    """Halve x [B, C, H, W] by averaging 2x2 pixels, double it by repeating, or leave it."""
    if resample == "down":
        return functional.avg_pool2d(x, 2)
    if resample == "up":
        return functional.interpolate(x, scale_factor=2, mode="nearest")
    return x


class ResidualBlock(nn.Module):
    """norm, SiLU, (resample,) conv, + embedding, norm, SiLU, conv; skip sum scaled by 1/sqrt(2).

    BigGAN style: where the block resamples, both branches are resampled before their first
    convolution, inside the block. The skip branch is a 1x1 convolution where channels change or
    the block resamples, else the identity. The second convolution starts at zero.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        *,
        resample: Resample = "none",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.resample: Resample = resample
        self.norm0 = group_norm(channels_in)
        self.conv0 = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)
        self.condition = nn.Linear(embedding, channels_out)
        self.norm1 = group_norm(channels_out)
        self.conv1 = nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1)
        projected = channels_in != channels_out or resample != "none"
        self.skip = nn.Conv2d(channels_in, channels_out, kernel_size=1) if projected else None
        self.attention = Attention(channels_out) if attention else None

    def forward(self, x: Tensor, e_BE: Tensor) -> Tensor:
        """Transform x [B, C_in, H, W] under the embedding [B, E] into [B, C_out, H', W']."""
        h = resampled(functional.silu(self.norm0(x)), self.resample)
        h = self.conv0(h) + self.condition(e_BE)[:, :, None, None]
        h = self.conv1(functional.silu(self.norm1(h)))
        skip = resampled(x, self.resample)
        if self.skip is not None:
            skip = self.skip(skip)
        h = (skip + h) * SKIP_SCALE
        return h if self.attention is None else self.attention(h)
