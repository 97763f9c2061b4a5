"""NumPy archives with the arrays `images` and `labels`."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.lib import format as npy

from pipeline.sources.base import SourceOptions, checked, require_file, rows_at_a_time
from privacy.errors import DataError
from privacy.records import LabelledRecords


class NpzSource(SourceOptions):
    """Load an `.npz` file.

    `images` is [N,H,W,C] or, grey, [N,H,W]: uint8, or a float type with values in [0, 1].
    `labels` is [N] of an integer type. Pickled objects are refused.
    """

    kind: Literal["npz"]
    path: Path

    def batches(
        self, size: int, channels: int, classes: Sequence[str]
    ) -> Iterator[LabelledRecords]:
        """Read both arrays; see `SourceOptions.batches`."""
        require_file(self.path)
        (labels,) = _read(self.path, "labels")
        done = 0
        for images in _read(self.path, "images", rows_at_a_time(size, channels)):
            part, done = labels[done : done + len(images)], done + len(images)
            shaped = images[..., np.newaxis] if images.ndim == 3 else images
            pixels = _as_bytes(shaped, self.path)
            yield checked(pixels, part, size, channels, classes, self.path)
        if done != len(labels):
            raise DataError(
                f"{self.path}: labels: int64 [{done}], one a record, was expected, "
                f"found {len(labels)}"
            )


def _read(path: Path, key: str, rows: int | None = None) -> Iterator[np.ndarray]:
    """Yield an array of the archive, up to `rows` along its first axis at a time or all at once."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if f"{key}.npy" in names:
                with archive.open(f"{key}.npy") as file:
                    yield from _parts(file, rows)
                return
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        # Not chained: NumPy's texts may quote what it read.
        raise DataError(
            f"{path}: a NumPy archive (.npz) without pickled objects was expected, "
            "found something else or a damaged file"
        ) from None
    found = ", ".join(sorted(name.removesuffix(".npy") for name in names)) or "none"
    raise DataError(f"{path}: an array named {key!r} was expected, found {found}")


def _parts(file: IO[bytes], rows: int | None) -> Iterator[np.ndarray]:
    """Yield the rows of an `.npy` file, once if there are none; raise ValueError if it is none."""
    old = npy.read_magic(file) == (1, 0)
    header = npy.read_array_header_1_0(file) if old else npy.read_array_header_2_0(file)
    shape, by_columns, kind = header
    if kind.hasobject or not shape:
        raise ValueError("an array of numbers was expected")
    # By columns, the first row's last number stands at the end of the file.
    step = max(1, shape[0] if rows is None or by_columns else rows)
    for start in range(0, shape[0] or 1, step):
        count = min(step, shape[0] - start)
        data = file.read(kind.itemsize * count * math.prod(shape[1:]))
        lengths = (count, *shape[1:])
        yield np.ndarray(lengths, kind, data, order="F" if by_columns else "C")
    # The archive's checksum is compared at the end of the file, and not before.
    if file.read(1):
        raise ValueError("a longer file than its header says")


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
