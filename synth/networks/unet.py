"""The DDPM++ U-Net of DPDM (Dockhorn et al. 2023, table 4.8; Song et al. 2021).

One convolution in; per resolution a downsampling block (but the first) and `blocks` residual
blocks; at the lowest resolution one block with attention and one without; then upwards per
resolution an upsampling block (but the lowest) and `blocks + 1` residual blocks, each of which
takes one stored feature map by concatenation, attention only after the last of them.
At 28x28x1 with the defaults that is 1,753,345 parameters, at 32x32x3, unconditional with
attention at 8 and 16, it is 1,804,451: the paper's 1.75 M and 1.80 M.

Shapes: B batch, C image channels, H = W = size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.errors import InvalidRequest
from synth.networks.attention import Attention
from synth.networks.blocks import ResidualBlock
from synth.networks.embedding import ConditionEmbedding
from synth.networks.norm import group_norm

# Attention starts almost even over the pixels (Song et al. 2021).
QKV_VARIANCE = 0.1


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net; the defaults are the paper's for MNIST.

    Attributes:
        size: pixels along each side of the (square) image.
        channels: channels of the image, 1 for grey and 3 for colour.
        base: channels of the first level; even.
        multipliers: channels of each level over `base`, from full resolution down.
        blocks: residual blocks per resolution on the way down (one more on the way up).
        attention: resolutions with self-attention; the lowest resolution always has one between
            the way down and the way up, listed or not.
        classes: number of labels 0..classes-1, `classes` itself being the null label; 0 makes
            the network unconditional.

    Raises:
        InvalidRequest: the values do not make a network.
    """

    size: int
    channels: int
    base: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (7,)
    classes: int = 10

    def __post_init__(self) -> None:
        # A configuration read back from JSON brings lists.
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        object.__setattr__(self, "attention", tuple(self.attention))
        for name, least in {"size": 1, "channels": 1, "base": 4, "blocks": 1, "classes": 0}.items():
            _require_integer(name, getattr(self, name), least)
        for multiplier in self.multipliers:
            _require_integer("multipliers", multiplier, 1)
        self._check_levels()

    def _check_levels(self) -> None:
        if self.base % 2:
            raise InvalidRequest(
                f"base channels must be even (cosine and sine of each frequency), found {self.base}"
            )
        if not self.multipliers:
            raise InvalidRequest("multipliers must name at least one level, found none")
        factor = 2 ** (len(self.multipliers) - 1)
        if self.size % factor:
            raise InvalidRequest(
                f"an image of {self.size} pixels cannot be halved {len(self.multipliers) - 1} "
                f"times: size must be divisible by {factor}; pad or resize the images, or give "
                "fewer multipliers"
            )
        unknown = [r for r in self.attention if r not in self.resolutions]
        if unknown:
            raise InvalidRequest(
                f"attention at resolution {', '.join(map(str, unknown))}, but this network has "
                f"only {', '.join(map(str, self.resolutions))}; choose among these (or none)"
            )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side length at each level, from full resolution down."""
        return tuple(self.size >> level for level in range(len(self.multipliers)))

    @property
    def null_label(self) -> int:
        """The label index that stands for "no label"."""
        return self.classes


def _require_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidRequest(f"{name} must be an integer of at least {least}, found {value!r}")


class UNet(nn.Module):
    """The raw network F(x; c_noise, y). It gives zero everywhere until it is trained.

    Every record is treated on its own (no batch statistics), and `forward` has no in-place
    operation and no branch on data, so it may be used under `torch.func.vmap` and `grad`.

    Args:
        config: its shape.
        seed: seed, or generator, of the initial weights; the same seed gives the same weights
            and torch's global generator is left as it was.
    """

    def __init__(self, config: UNetConfig, seed: int | torch.Generator = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            self._build(config)
        if not isinstance(seed, torch.Generator):
            seed = torch.Generator().manual_seed(seed)
        _initialise(self, seed)

    def _build(self, config: UNetConfig) -> None:
        stored = [config.base]  # channels of each feature map the way down leaves for the way up
        self.condition = ConditionEmbedding(config.base, config.classes)
        self.stem = nn.Conv2d(config.channels, config.base, kernel_size=3, padding=1)
        self.down = nn.ModuleList(_way_down(config, stored))
        self.middle = nn.ModuleList(_middle(config, stored[-1]))
        self.up = nn.ModuleList(_way_up(config, stored))
        channels = config.base * config.multipliers[0]
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, config.channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate F.

        Args:
            x: [B, C, H, W], already scaled by c_in.
            c_noise: [B], the noise level as the config encodes it.
            label: [B] integers in 0..classes, `classes` being null; ignored where the network is
                unconditional.

        Returns:
            [B, C, H, W].
        """
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
    for level, (resolution, multiplier) in enumerate(
        zip(config.resolutions, config.multipliers, strict=True)
    ):
        if level:
            yield ResidualBlock(channels, channels, embedding, resample="down")
            stored.append(channels)
        for _ in range(config.blocks):
            attention = resolution in config.attention
            yield ResidualBlock(channels, config.base * multiplier, embedding, attention=attention)
            channels = config.base * multiplier
            stored.append(channels)


def _middle(config: UNetConfig, channels: int) -> Iterator[ResidualBlock]:
    for attention in (True, False):
        yield ResidualBlock(channels, channels, 4 * config.base, attention=attention)


def _way_up(config: UNetConfig, stored: list[int]) -> Iterator[ResidualBlock]:
    channels, embedding = stored[-1], 4 * config.base
    lowest = len(config.multipliers) - 1
    for level in range(lowest, -1, -1):
        if level != lowest:
            yield ResidualBlock(channels, channels, embedding, resample="up")
        for block in range(config.blocks + 1):
            last = block == config.blocks
            yield ResidualBlock(
                channels + stored.pop(),
                config.base * config.multipliers[level],
                embedding,
                attention=last and config.resolutions[level] in config.attention,
            )
            channels = config.base * config.multipliers[level]


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
