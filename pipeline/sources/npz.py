"""NumPy archives with the arrays `images` and `labels`."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.sources.base import SourceOptions, checked, require_file
from privacy.errors import DataError
from privacy.records import LabelledRecords


class NpzSource(SourceOptions):
    """Load an `.npz` file.

    `images` is [N,H,W,C] or, grey, [N,H,W]: uint8, or a float type with values in [0, 1].
    `labels` is [N] of an integer type. Pickled objects are refused.
    """

    kind: Literal["npz"]
    path: Path

    def load(self, size: int, channels: int, classes: Sequence[str]) -> LabelledRecords:
        """Read both arrays; see `SourceOptions.load`."""
        require_file(self.path)
        images, labels = _read(self.path, "images"), _read(self.path, "labels")
        if images.ndim == 3:
            images = images[..., np.newaxis]
        images = _as_bytes(images, self.path)
        return checked(images, labels, size, channels, classes, self.path)


def _read(path: Path, key: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if key in archive.files:
                return np.asarray(archive[key])
            found = ", ".join(sorted(archive.files)) or "none"
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, TypeError):
        # Not chained: NumPy's texts may quote what it read.
        raise DataError(
            f"{path}: a NumPy archive (.npz) without pickled objects was expected, "
            "found something else or a damaged file"
        ) from None
    raise DataError(f"{path}: an array named {key!r} was expected, found {found}")


def _as_bytes(images: np.ndarray, path: Path) -> np.ndarray:
    """Return `images` as uint8; floats are fractions of 255."""
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{path}: images of uint8 or float were expected, found {images.dtype}")
    if not np.isfinite(images).all():
        raise DataError(f"{path}: finite pixels were expected, found NaN or infinity")
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise DataError(f"{path}: float pixels between 0 and 1 were expected, found some outside")
    return np.rint(images.astype(np.float64) * 255).astype(np.uint8)
