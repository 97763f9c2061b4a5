"""The DDPM++ U-Net F(x; c_noise, y)."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from synth.settings import ComponentSettings, Count, NetworkSettings, raise_if_any


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm of min(channels/4, 32) groups, or the next fewer that divide the channels.

    >>> group_norm(12).num_groups
    3
    """
    most = max(min(channels // 4, 32), 1)
    groups = next(g for g in range(most, 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


# The slowest frequency is 1/LONGEST of the fastest, which turns once in 2 pi units of c_noise.
LONGEST = 10_000.0


class SinusoidalEmbedding(nn.Module):
    """Positional embedding of c_noise: `channels/2` cosines, then as many sines.

    Frequencies fall geometrically from 1 to 1/10000 (Vaswani et al. 2017, as DDPM++ uses it).
    """

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        exponents = torch.arange(half, dtype=torch.float64) / max(half - 1, 1)
        frequencies = torch.exp(-math.log(LONGEST) * exponents).to(torch.float32)
        # A constant of the architecture, so not part of the weights that are stored.
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embed c_noise [B] as [B, channels]."""
        angles = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class ConditionEmbedding(nn.Module):
    """Noise embedding plus learned class embedding, through two SiLU layers."""

    def __init__(self, base: int, classes: int) -> None:
        super().__init__()
        self.noise = SinusoidalEmbedding(base)
        # The last row is the null label's. With no classes the model is unconditional.
        self.label = nn.Embedding(classes + 1, base) if classes else None
        self.layer0 = nn.Linear(base, 4 * base)
        self.layer1 = nn.Linear(4 * base, 4 * base)

    def forward(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """Embed c_noise [B] and label [B] (indices, `classes` is null) as [B, E]."""
        e_BE = self.noise(c_noise)
        if self.label is not None:
            if label is None:
                raise TypeError("a conditional network needs labels: pass the null index to drop")
            e_BE = e_BE + self.label(label)
        e_BE = functional.silu(self.layer0(e_BE))
        return functional.silu(self.layer1(e_BE))


SKIP_SCALE = 1 / math.sqrt(2)


class Attention(nn.Module):
    """Single-head self-attention, residual, its sum scaled by 1/sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.projection = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the pixels of x [B, C, H, W]; same shape out."""
        B, C, H, W = x.shape
        q_BCT, k_BCT, v_BCT = self.qkv(self.norm(x)).reshape(B, 3, C, H * W).unbind(dim=1)
        # Plain products: the CPU kernels of `scaled_dot_product_attention` have no batching rule
        # under `torch.func.vmap`, and at 49 to 256 tokens nothing is lost.
        logits_BTT = torch.matmul(q_BCT.transpose(1, 2) / math.sqrt(C), k_BCT)
        attended_BCT = torch.matmul(v_BCT, logits_BTT.softmax(dim=-1).transpose(1, 2))
        return (x + self.projection(attended_BCT.reshape(B, C, H, W))) * SKIP_SCALE


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

    BigGAN style: both branches are resampled before their first convolution, inside the block. The
    skip branch is a 1x1 convolution where channels change or the block resamples.
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


# Attention starts almost even over the pixels (Song et al. 2021).
QKV_VARIANCE = 0.1


class UNetConfig(NetworkSettings, ComponentSettings):
    """Shape of a U-Net for square images of `size` pixels a side.

    Labels are 0..classes-1, and `classes` is the null label; 0 makes the network unconditional.

    Raises:
        InvalidRequest: the values do not make a network.

    >>> UNetConfig(size=28, channels=1).resolutions(28)
    (28, 14, 7)
    """

    size: Count
    channels: Count
    classes: Annotated[int, Field(ge=0)] = 10

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        raise_if_any(self.errors_at(self.size))
        return self


class UNet(nn.Module):
    """The raw network F(x; c_noise, y), with zero output until it is trained.

    Every record is treated on its own (no batch statistics), and `forward` has no in-place
    operation and no branch on data, so it may be used under `torch.func.vmap` and `grad`.
    `seed` gives the initial weights; torch's global generator is left as it was.
    """

    def __init__(self, config: UNetConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        stored = [config.base]  # channels of each feature map the way down leaves for the way up
        with torch.random.fork_rng(devices=[]):
            self.condition = ConditionEmbedding(config.base, config.classes)
            self.stem = nn.Conv2d(config.channels, config.base, kernel_size=3, padding=1)
            self.down = nn.ModuleList(_way_down(config, stored))
            self.middle = nn.ModuleList(
                ResidualBlock(stored[-1], stored[-1], 4 * config.base, attention=attention)
                for attention in (True, False)
            )
            self.up = nn.ModuleList(_way_up(config, stored))
            channels = config.base * config.multipliers[0]
            self.norm_out = group_norm(channels)
            self.conv_out = nn.Conv2d(channels, config.channels, kernel_size=3, padding=1)
        _initialise(self, torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate F at x [B, C, H, W], c_noise [B] and label [B] in 0..classes."""
        e_BE = self.condition(c_noise, label)
        h = self.stem(x)
        stored = [h]
        for block in self.down:
            h = block(h, e_BE)
            stored.append(h)
        for block in self.middle:
            h = block(h, e_BE)
        for block in self.up:
            if block.resample == "none":
                h = torch.cat([h, stored.pop()], dim=1)
            h = block(h, e_BE)
        return self.conv_out(functional.silu(self.norm_out(h)))


def _way_down(config: UNetConfig, stored: list[int]) -> Iterator[ResidualBlock]:
    channels, embedding = config.base, 4 * config.base
    resolutions = config.resolutions(config.size)
    for level, (resolution, multiplier) in enumerate(
        zip(resolutions, config.multipliers, strict=True)
    ):
        if level:
            yield ResidualBlock(channels, channels, embedding, resample="down")
            stored.append(channels)
        attention, out = resolution in config.attention, config.base * multiplier
        for _ in range(config.blocks):
            yield ResidualBlock(channels, out, embedding, attention=attention)
            channels = out
            stored.append(channels)


def _way_up(config: UNetConfig, stored: list[int]) -> Iterator[ResidualBlock]:
    channels, embedding = stored[-1], 4 * config.base
    resolutions = config.resolutions(config.size)
    for level in reversed(range(len(resolutions))):
        if level < len(resolutions) - 1:
            yield ResidualBlock(channels, channels, embedding, resample="up")
        out = config.base * config.multipliers[level]
        for block in range(config.blocks + 1):
            # Only the last block of a level attends.
            attention = block == config.blocks and resolutions[level] in config.attention
            yield ResidualBlock(channels + stored.pop(), out, embedding, attention=attention)
            channels = out


@torch.no_grad()
def _initialise(network: UNet, generator: torch.Generator) -> None:
    """Glorot-uniform weights, zero biases; zero where a residual branch or the network ends."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            # As strong as the sinusoids it is added to.
            nn.init.normal_(module.weight, std=math.sqrt(0.5), generator=generator)
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv1.weight)
        elif isinstance(module, Attention):
            module.qkv.weight.mul_(math.sqrt(QKV_VARIANCE))
            nn.init.zeros_(module.projection.weight)
    nn.init.zeros_(network.conv_out.weight)
