"""A small fixed filter bank as features: no training data, no download, any image of 8x8 up.

What it sees, for pixels scaled to [0, 1] and brightness meaning the average over channels:

- layout: brightness averaged over a 4x4 grid of cells, 16 numbers;
- texture: on each of three octaves (native, half and quarter resolution), brightness filtered by
  complex Gabor wavelets of four orientations, their modulus averaged over the four quadrants:
  3 * 4 * 4 = 48 numbers, the first order of a scattering transform (Bruna and Mallat 2013);
- colour: for each channel but the last, its difference from brightness over the same 4x4 grid,
  16 numbers a channel. Grey images have none, so their dimension is 64; RGB has 96.

What it does not see: phase and order inside a cell, the sign of an edge, joint texture of several
octaves, meaning. It tells blur, noise, wrong class shares and dropped classes; it does not rank
good generators as Inception does. Its Fréchet distance is `frechet_gabor`, never FID, and compares
only between sets of one image shape.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, conv2d, pad

from eval.arrays import check_images
from eval.features.base import batches

SMALLEST = 8
OCTAVES = 3
ORIENTATIONS = 4
LAYOUT_CELLS = 4
TEXTURE_CELLS = 2

_KERNEL_SIDE = 5
_WAVELENGTH = 3.0
_ENVELOPE = 1.2
_BATCH = 512


class GaborFeatures:
    """Layout, texture and colour features [N, 48 + 16 * channels]; see the module's text.

    Args:
        channels: channels of the images to come.
        device: torch device on which to compute.

    Raises:
        ValueError: fewer than one channel.
    """

    name = "gabor"
    metric = "frechet_gabor"

    def __init__(self, channels: int, device: str = "cpu") -> None:
        if channels < 1:
            raise ValueError(f"gabor: expected at least one channel, found {channels}")
        self.channels = channels
        self.dimension = LAYOUT_CELLS**2 * channels + OCTAVES * ORIENTATIONS * TEXTURE_CELLS**2
        self._device = torch.device(device)
        self._kernels = gabor_kernels().to(self._device)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features float64 [N, d] of images uint8 [N, H, W, C], C as constructed.

        Raises:
            TypeError: images are not uint8.
            ValueError: another number of channels, or a side under eight pixels.
        """
        check_images(images, "images")
        if images.shape[3] != self.channels:
            raise ValueError(f"gabor: expected {self.channels} channels, found {images.shape[3]}")
        if min(images.shape[1:3]) < SMALLEST:
            raise ValueError(
                f"gabor: expected images of at least {SMALLEST}x{SMALLEST} pixels, "
                f"found {images.shape[1]}x{images.shape[2]}"
            )
        return np.concatenate([self._features(part) for part in batches(images, _BATCH)])

    def _features(self, images: np.ndarray) -> np.ndarray:
        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        pixels = torch.from_numpy(channels_first).to(self._device).double().div_(255)
        brightness = pixels.mean(dim=1, keepdim=True)
        colour = pixels[:, :-1] - brightness
        parts = [_cells(brightness, LAYOUT_CELLS), _cells(colour, LAYOUT_CELLS)]
        for octave in range(OCTAVES):
            if octave > 0:
                # An odd last row or column still counts, averaged over the pixels it has.
                brightness = avg_pool2d(brightness, 2, ceil_mode=True)
            parts.append(_cells(self._moduli(brightness), TEXTURE_CELLS))
        return torch.cat(parts, dim=1).cpu().numpy()

    def _moduli(self, brightness: Tensor) -> Tensor:
        """Moduli [B, orientations, H, W] of the complex responses to one octave [B, 1, H, W]."""
        # Edges are repeated, not zeroed: a zero border would be seen as an edge of the image.
        margin = _KERNEL_SIDE // 2
        padded = pad(brightness, (margin, margin, margin, margin), mode="replicate")
        real, imaginary = conv2d(padded, self._kernels).chunk(2, dim=1)
        return torch.hypot(real, imaginary)


def gabor_kernels() -> Tensor:
    """Gabor wavelets float64 [2 * orientations, 1, 5, 5]: real parts, then imaginary parts.

    exp(-|u|^2 / 2 s^2) * (exp(i k.u) - b), with b such that the kernel sums to zero (a flat image
    has no texture), scaled to unit energy so that white noise excites all of them alike.
    """
    side = torch.arange(_KERNEL_SIDE, dtype=torch.float64) - _KERNEL_SIDE // 2
    vertical, horizontal = torch.meshgrid(side, side, indexing="ij")
    envelope = torch.exp(-(vertical**2 + horizontal**2) / (2 * _ENVELOPE**2))
    kernels = []
    for orientation in range(ORIENTATIONS):
        angle = math.pi * orientation / ORIENTATIONS
        along = horizontal * math.cos(angle) + vertical * math.sin(angle)
        wave = torch.polar(envelope, 2 * math.pi * along / _WAVELENGTH)
        kernel = wave - envelope * (wave.sum() / envelope.sum())
        kernels.append(kernel / kernel.abs().square().sum().sqrt())
    bank = torch.stack(kernels)
    return torch.cat([bank.real, bank.imag]).unsqueeze(1)


def _cells(maps: Tensor, cells: int) -> Tensor:
    """Averages of [B, maps, H, W] over a grid of cells, flattened to [B, maps * cells^2]."""
    return adaptive_avg_pool2d(maps, cells).flatten(1)
