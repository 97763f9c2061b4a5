"""Scattering: fixed wavelet features of images, in torch (Mallat 2012; Oyallon and Mallat 2015).

S x = (x, |x * psi_1|, ||x * psi_1| * psi_2|) * phi with Morlet wavelets at two scales and L = 8
angles: 1 + 16 + 64 = 81 maps a channel. Nothing is learnt or measured, so features cost no privacy.
Own code, for kymatio has had no release since 2022: a convolution in space, where its transform
goes through Fourier space.

Shapes: n images, c channels, S pixels of a side, G cells of the coarse grid, F features.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

_ANGLES = 8
_MAPS = 1 + 2 * _ANGLES + _ANGLES**2
_GROUPS = 27  # of three maps each, normalised together (Tramer and Boneh 2021)
_SIGMA, _FREQUENCY, _SLANT = 0.8, 3 * math.pi / 4, 0.5  # of the finer wavelet, in pixels
_HALF = (4, 8)  # half widths of the filters: 2.5 standard deviations along a wave's crest
_LARGEST = 32  # pixels; a larger image is averaged down to this first
_CHUNK = 256  # images at a time: their maps fill the cache


@dataclass(frozen=True)
class Scattering:
    """The features of images of one size; the same for all images, on any device.

    >>> Scattering(channels=1, size=28).features
    3969
    """

    channels: int
    size: int

    @property
    def features(self) -> int:
        """F, the number of features of an image."""
        return self.channels * _MAPS * self._grid**2

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features [n, F], float32, of images [n, c, S, S] in [-1, 1].

        Within an image every group of three maps of a channel has mean 0 and variance 1.
        """
        if len(images) == 0:
            return images.new_zeros(0, self.features, dtype=torch.float32)
        return torch.cat([self._of(chunk) for chunk in images.float().split(_CHUNK)])

    @property
    def _working(self) -> int:
        return min(self.size, _LARGEST)

    @property
    def _grid(self) -> int:
        return max(4, self._working // 4)

    @cached_property
    def _filters(self) -> tuple[Tensor, Tensor]:
        """The wavelets of both scales, real parts then imaginary parts, [16, 1, w, w]."""
        banks = []
        for scale, half in enumerate(_HALF):
            waves = [_morlet(scale, math.pi * i / _ANGLES, half) for i in range(_ANGLES)]
            bank = torch.stack(waves)
            banks.append(torch.cat([bank.real, bank.imag])[:, None].float())
        return banks[0], banks[1]

    def _of(self, images: Tensor) -> Tensor:
        n, S = len(images), self._working
        if self.size != S:
            images = functional.interpolate(images, size=(S, S), mode="area")
        fine, coarse = self._filters
        x = images.reshape(-1, 1, S, S)
        first = _modulus(x, fine, 1)
        second = _modulus(x, coarse, 2)
        twice = _modulus(first.reshape(-1, 1, S, S), coarse, 2)
        half = second.shape[-1]
        maps = [
            self._averaged(x),
            self._averaged(first),
            self._averaged(second),
            self._averaged(twice.reshape(-1, _ANGLES**2, half, half)),
        ]
        grouped = torch.cat(maps, 1).reshape(n * self.channels, _GROUPS, -1)
        return functional.layer_norm(grouped, grouped.shape[2:]).reshape(n, -1)

    def _averaged(self, maps: Tensor) -> Tensor:
        """Return the maps [.., w, w] under a Gaussian window at the G x G grid's centres."""
        rows = _window(maps.shape[-1], self._grid).to(maps)
        return rows @ maps @ rows.T


def _morlet(scale: int, angle: float, half: int) -> Tensor:
    """Return a complex wave under an oblong Gaussian, with mean 0; [2 half + 1, 2 half + 1]."""
    sigma, xi = _SIGMA * 2**scale, _FREQUENCY / 2**scale
    axis = torch.arange(-half, half + 1, dtype=torch.float64)
    y, x = axis[:, None], axis[None]
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    envelope = torch.exp(-(along**2 + (_SLANT * across) ** 2) / (2 * sigma**2))
    wave = torch.exp(1j * xi * along)
    wave = envelope * (wave - (envelope * wave).sum() / envelope.sum())
    return wave * _SLANT / (2 * math.pi * sigma**2)


def _modulus(x: Tensor, filters: Tensor, stride: int) -> Tensor:
    """Return |x * psi| for each angle, [n, 8, ...], of maps [n, 1, S, S]; edges go on outside."""
    half = filters.shape[-1] // 2
    padded = functional.pad(x, (half,) * 4, mode="replicate")
    waves = functional.conv2d(padded, filters.to(x), stride=stride)
    return torch.hypot(waves[:, :_ANGLES], waves[:, _ANGLES:])


def _window(width: int, cells: int) -> Tensor:
    """Return the matrix [cells, width] of Gaussian windows around each cell's centre."""
    spacing = width / cells
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) * spacing - 0.5
    distance = torch.arange(width, dtype=torch.float64) - centres[:, None]
    rows = torch.exp(-(distance**2) / (2 * (0.4 * spacing) ** 2))
    return rows / rows.sum(1, keepdim=True)
