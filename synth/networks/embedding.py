"""What the residual blocks are told: the noise level and the class, as one vector.

Shapes: B batch, E channels of the embedding (4 x base).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# The slowest frequency is 1/LONGEST of the fastest, which turns once in 2 pi units of c_noise.
LONGEST = 10_000.0


class SinusoidalEmbedding(nn.Module):
    """Positional embedding of c_noise: `channels/2` cosines, then as many sines.

    Frequencies fall geometrically from 1 to 1/10000, both ends included (Vaswani et al. 2017,
    as DDPM++ uses it). `forward` takes [B] and returns [B, channels] in the dtype of the input.
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
        """Embed `c_noise` [B] as [B, channels]."""
        angles = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class ConditionEmbedding(nn.Module):
    """Noise embedding plus learned class embedding, through two SiLU layers.

    Row `classes` of the class table is the null label (label dropped). With `classes=0` the model
    is unconditional: there is no table and labels are ignored.
    """

    def __init__(self, base: int, classes: int) -> None:
        super().__init__()
        self.noise = SinusoidalEmbedding(base)
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
