"""Feature extractors: fixed maps from images to vectors in which sets of images are compared."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, conv2d, pad

from eval.arrays import check_images
from eval.settings import EXTRACTOR_NAMES

SMALLEST = 8
OCTAVES, ORIENTATIONS = 3, 4
LAYOUT_CELLS, TEXTURE_CELLS = 4, 2
_KERNEL_SIDE = 5
_WAVELENGTH = 3.0
_ENVELOPE = 1.2
_GABOR_BATCH = 512

INCEPTION_DIMENSION = 2048
_INCEPTION_BATCH, _PROBE_SIDE = 64, 32


class FeatureExtractor(Protocol):
    """A fixed map from an image to a vector; it learns nothing from the images it is given."""

    #: Registry name.
    name: str
    #: Name of the Fréchet distance between its features: "fid" for Inception alone,
    #: "frechet_<name>" for any other, since numbers of different extractors do not compare.
    metric: str
    #: Length d of a feature vector.
    dimension: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return features float64 [N, d] of images uint8 [N, H, W, C], computed in batches.

        Raises TypeError or ValueError for images of another type, or a shape it cannot take.
        """
        ...


def extractor(
    name: str, channels: int, path: Path | None = None, device: str = "cpu"
) -> FeatureExtractor:
    """Return the extractor called `name` for images with that number of channels.

    "gabor" is built in, "inception" needs the `path` of a local TorchScript file. Raises ValueError
    where there is no such extractor, or it cannot be built from these arguments.
    """
    if name not in EXTRACTOR_NAMES:
        raise ValueError(f"extractor: expected one of {', '.join(EXTRACTOR_NAMES)}, found {name!r}")
    if name == "gabor":
        return GaborFeatures(channels, device)
    if path is None:
        raise ValueError(
            "inception: expected the path of a local TorchScript file, found none; "
            "give the path or use the built-in extractor 'gabor'"
        )
    return InceptionFeatures(path, device)


def batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield consecutive slices of at most `size` images."""
    for start in range(0, len(images), size):
        yield images[start : start + size]


class GaborFeatures:
    """Small fixed filter bank: features [N, 48 + 16 * channels] of images of 8x8 pixels and up.

    Pixels are scaled to [0, 1]; brightness is the average over channels.
    They are blind to phase and order inside a cell, the sign of an edge, joint texture of several
    octaves, meaning. They detect blur, noise, wrong class shares and dropped classes; they do not
    rank good generators as Inception does. Distances compare only between sets of one image shape.
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
        """Return features float64 [N, d] of images uint8 [N, H, W, C], C as constructed."""
        check_images(images, "images")
        if images.shape[3] != self.channels:
            raise ValueError(f"gabor: expected {self.channels} channels, found {images.shape[3]}")
        if min(images.shape[1:3]) < SMALLEST:
            raise ValueError(
                f"gabor: expected images of at least {SMALLEST}x{SMALLEST} pixels, "
                f"found {images.shape[1]}x{images.shape[2]}"
            )
        return np.concatenate([self._features(part) for part in batches(images, _GABOR_BATCH)])

    def _features(self, images: np.ndarray) -> np.ndarray:
        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        pixels = torch.from_numpy(channels_first).to(self._device).double().div_(255)
        brightness = pixels.mean(dim=1, keepdim=True)
        colour = pixels[:, :-1] - brightness
        # Layout: brightness averaged over a 4x4 grid, 16 numbers. Colour: for each channel but the
        # last, its difference from brightness over the same grid.
        parts = [_cells(brightness, LAYOUT_CELLS), _cells(colour, LAYOUT_CELLS)]
        # Texture: at native, half and quarter resolution, the moduli of complex Gabor wavelets of
        # four orientations, averaged over the quadrants: 3 * 4 * 4 = 48 numbers, the first order of
        # a scattering transform (Bruna and Mallat 2013).
        for octave in range(OCTAVES):
            if octave > 0:
                # An odd last row or column still counts, averaged over the pixels it has.
                brightness = avg_pool2d(brightness, 2, ceil_mode=True)
            parts.append(_cells(self._moduli(brightness), TEXTURE_CELLS))
        return torch.cat(parts, dim=1).cpu().numpy()

    def _moduli(self, brightness: Tensor) -> Tensor:
        """Return the moduli [B, orientations, H, W] of the responses to one octave [B, 1, H, W]."""
        # Edges are repeated, not zeroed: a zero border would be seen as an edge of the image.
        margin = _KERNEL_SIDE // 2
        padded = pad(brightness, (margin, margin, margin, margin), mode="replicate")
        real, imaginary = conv2d(padded, self._kernels).chunk(2, dim=1)
        return torch.hypot(real, imaginary)


def gabor_kernels() -> Tensor:
    """Return Gabor wavelets float64 [2 * orientations, 1, 5, 5]: real parts, then imaginary."""
    side = torch.arange(_KERNEL_SIDE, dtype=torch.float64) - _KERNEL_SIDE // 2
    vertical, horizontal = torch.meshgrid(side, side, indexing="ij")
    envelope = torch.exp(-(vertical**2 + horizontal**2) / (2 * _ENVELOPE**2))
    kernels = []
    for orientation in range(ORIENTATIONS):
        angle = math.pi * orientation / ORIENTATIONS
        along = horizontal * math.cos(angle) + vertical * math.sin(angle)
        wave = torch.polar(envelope, 2 * math.pi * along / _WAVELENGTH)
        # exp(-|u|^2 / 2 s^2) * (exp(i k.u) - b), with b such that the kernel sums to zero, because
        # a flat image has no texture; of unit energy, so that all respond to white noise alike.
        kernel = wave - envelope * (wave.sum() / envelope.sum())
        kernels.append(kernel / kernel.abs().square().sum().sqrt())
    bank = torch.stack(kernels)
    return torch.cat([bank.real, bank.imag]).unsqueeze(1)


def _cells(maps: Tensor, cells: int) -> Tensor:
    """Average [B, maps, H, W] over a grid of cells, flattened to [B, maps * cells^2]."""
    return adaptive_avg_pool2d(maps, cells).flatten(1)


class InceptionFeatures:
    """Pooled features [N, 2048] of a local 2015 Inception-v3, in which FID is defined.

    The weights are not shipped and nothing is downloaded. The TorchScript file must behave as the
    `inception-2015-12-05.pt` that FID tools share (Heusel et al. 2017):

    - input uint8 [B, 3, H, W] with values 0..255, of any size; grey images are repeated to three
      channels;
    - it resizes to 299x299 (bilinear, as the original TensorFlow graph does) and normalises itself;
    - output [B, 2048], the pooled features.

    The file runs code: use one you trust. Raises ValueError if it is missing or not such a network.
    """

    name = "inception"
    metric = "fid"
    dimension = INCEPTION_DIMENSION

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._network = _load_network(path, self._device)
        forward: Any = self._network.forward
        arguments = {argument.name for argument in forward.schema.arguments}
        # Without this argument the shared file returns class probabilities.
        self._options = {"return_features": True} if "return_features" in arguments else {}
        self._probe(path)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return features float64 [N, 2048] of images uint8 [N, H, W, C] with C of 1 or 3."""
        check_images(images, "images")
        if images.shape[3] not in (1, 3):
            raise ValueError(f"inception: expected 1 or 3 channels, found {images.shape[3]}")
        parts = [self._features(part).cpu().double() for part in batches(images, _INCEPTION_BATCH)]
        return torch.cat(parts).numpy()

    def _features(self, images: np.ndarray) -> Tensor:
        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        pixels = torch.from_numpy(channels_first).to(self._device).expand(-1, 3, -1, -1)
        with torch.inference_mode():
            return self._network(pixels, **self._options)

    def _probe(self, path: Path) -> None:
        """Raise ValueError for a wrong network now, not after training."""
        # The blank images are small, so a network that does not resize them itself fails.
        blank = np.zeros((2, _PROBE_SIDE, _PROBE_SIDE, 3), dtype=np.uint8)
        expected = (
            f"inception: expected {path} to map uint8 [B, 3, H, W] of any size "
            f"to features [B, {INCEPTION_DIMENSION}]"
        )
        try:
            features = self._features(blank)
        except Exception as error:
            raise ValueError(
                f"{expected}, but it failed on blank {_PROBE_SIDE}x{_PROBE_SIDE} images "
                f"({type(error).__name__}); "
                "export it so that it takes bytes and resizes them to 299x299 itself"
            ) from error
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if found != (2, INCEPTION_DIMENSION):
            raise ValueError(f"{expected}, found output {found} for two images")


def _load_network(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    if not Path(path).is_file():
        raise ValueError(
            f"inception: expected a TorchScript file at {path}, found none; "
            "put the 2015 Inception-v3 there or use the built-in extractor 'gabor'"
        )
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:
        raise ValueError(
            f"inception: expected {path} to be a TorchScript file, but torch cannot read it "
            f"({type(error).__name__})"
        ) from error
