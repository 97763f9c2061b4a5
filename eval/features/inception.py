"""Features of the 2015 Inception-v3, the network in which FID is defined (Heusel et al. 2017).

The weights are not shipped and nothing is downloaded: the user gives the path of a TorchScript
file. It must behave as the `inception-2015-12-05.pt` that FID tools share:

- input uint8 [B, 3, H, W] with values 0..255, of any size;
- it resizes to 299x299 (bilinear, as the original TensorFlow graph does) and normalises itself;
- output [B, 2048], the pooled features; called with `return_features=True` where it has that
  argument, for without it the shared file answers with class probabilities.

Grey images are repeated to three channels. A TorchScript file runs code: use one you trust.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.arrays import check_images
from eval.features.base import batches

DIMENSION = 2048

_BATCH = 64
_PROBE_SIDE = 32


class InceptionFeatures:
    """Pooled features [N, 2048] of a local Inception-v3; their Fréchet distance is called FID.

    Args:
        path: local TorchScript file; see the module's text for what it must do.
        device: torch device on which to compute.

    Raises:
        ValueError: no such file, not a TorchScript file, or not the network described above.
    """

    name = "inception"
    metric = "fid"
    dimension = DIMENSION

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._network = _load(path, self._device)
        forward: Any = self._network.forward
        arguments = {argument.name for argument in forward.schema.arguments}
        self._options = {"return_features": True} if "return_features" in arguments else {}
        self._probe(path)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features float64 [N, 2048] of images uint8 [N, H, W, C] with C of 1 or 3.

        Raises:
            TypeError: images are not uint8.
            ValueError: another number of channels, or another shape than [N, H, W, C].
        """
        check_images(images, "images")
        if images.shape[3] not in (1, 3):
            raise ValueError(f"inception: expected 1 or 3 channels, found {images.shape[3]}")
        parts = [self._features(part).cpu().double().numpy() for part in batches(images, _BATCH)]
        return np.concatenate(parts)

    def _features(self, images: np.ndarray) -> Tensor:
        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        pixels = torch.from_numpy(channels_first).to(self._device).expand(-1, 3, -1, -1)
        with torch.inference_mode():
            return self._network(pixels, **self._options)

    def _probe(self, path: Path) -> None:
        """Two small blank images tell a wrong network now instead of after training.

        They are small on purpose: a network that does not resize them itself cannot take them.
        """
        blank = np.zeros((2, _PROBE_SIDE, _PROBE_SIDE, 3), dtype=np.uint8)
        expected = (
            f"inception: expected {path} to map uint8 [B, 3, H, W] of any size "
            f"to features [B, {DIMENSION}]"
        )
        try:
            features = self._features(blank)
        except (RuntimeError, torch.jit.Error) as error:
            raise ValueError(
                f"{expected}, but it failed on blank {_PROBE_SIDE}x{_PROBE_SIDE} images; "
                "export it so that it takes bytes and resizes them to 299x299 itself"
            ) from error
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if found != (2, DIMENSION):
            raise ValueError(f"{expected}, found output {found} for two images")


def _load(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    if not Path(path).is_file():
        raise ValueError(
            f"inception: expected a TorchScript file at {path}, found none; "
            "put the 2015 Inception-v3 there or use the built-in extractor 'gabor'"
        )
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(
            f"inception: expected {path} to be a TorchScript file, but torch cannot read it"
        ) from error
