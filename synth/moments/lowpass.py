"""The orthonormal lowpass P: the m x m lowest cosines of an image, channel by channel.

Shapes: n images, c channels, S pixels of a side, m cosines of a side, q = c m^2 coefficients.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lowpass:
    """P keeps m x m coefficients of the type-II cosine transform of each channel; P P^T = I.

    >>> P = Lowpass(channels=1, size=8, kept=3)
    >>> coefficients = torch.randn(2, P.dimension, dtype=torch.float64)
    >>> bool(torch.allclose(P(P.inverse(coefficients)), coefficients))
    True
    """

    channels: int
    size: int
    kept: int  # m, at most the size

    @property
    def dimension(self) -> int:
        """q, the number of coefficients of an image."""
        return self.channels * self.kept**2

    @cached_property
    def _cosines(self) -> Tensor:
        x, u = torch.arange(self.size, dtype=torch.float64), torch.arange(self.kept)
        rows = torch.cos(math.pi / self.size * (x + 0.5) * u[:, None]) * math.sqrt(2 / self.size)
        rows[0] /= math.sqrt(2)
        return rows

    def __call__(self, images: Tensor) -> Tensor:
        """Return the coefficients [n, q] of images [n, c, S, S], in their dtype and device."""
        rows = self._cosines.to(images)
        return (rows @ images @ rows.T).flatten(1)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Return the images [n, c, S, S] of coefficients [n, q]: P^T, which adds no detail."""
        rows = self._cosines.to(coefficients)
        shaped = coefficients.reshape(-1, self.channels, self.kept, self.kept)
        return rows.T @ shaped @ rows

    @cached_property
    def bands(self) -> Tensor:
        """The band of each coefficient, int64 [q]: its rounded distance from 0, by channel."""
        u = torch.arange(self.kept, dtype=torch.float64)
        radius = torch.hypot(u[:, None], u[None]).round().long().flatten()
        per_channel = int(radius.max()) + 1
        return (radius + per_channel * torch.arange(self.channels)[:, None]).flatten()
