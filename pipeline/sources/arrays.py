"""Arrays of pixels: NumPy archives, IDX files, and the digits of scikit-learn."""

import gzip
import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.lib import format as npy

from pipeline.sources import base
from privacy.errors import DataError
from privacy.records import LabelledRecords

_UNSIGNED_BYTE = 0x08
_CHUNK = 1 << 20


class DigitsSource(base.SourceOptions):
    """Load scikit-learn's digits; every fifth record (index 4, 9, 14, …) is held out."""

    kind: Literal["digits"] = "digits"
    split: Literal["train", "holdout"] = "train"

    def batches(
        self, size: int, channels: int, classes: Sequence[str]
    ) -> Iterator[LabelledRecords]:
        """Yield one split of the digits at once, values 0…16 scaled to 0…255."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
        # By the index alone: whether a record is held out depends on no other record.
        held_out = np.arange(len(images)) % 5 == 4
        part = held_out if self.split == "holdout" else ~held_out
        yield base.checked(images[part], digits.target[part], size, channels, classes, "digits")


class NpzSource(base.SourceOptions):
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
        _require_file(self.path)
        (labels,) = _read(self.path, "labels")
        done = 0
        for images in _read(self.path, "images", base.rows_at_a_time(size, channels)):
            part, done = labels[done : done + len(images)], done + len(images)
            shaped = images[..., np.newaxis] if images.ndim == 3 else images
            pixels = _as_bytes(shaped, self.path)
            yield base.checked(pixels, part, size, channels, classes, self.path)
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
                    yield from _npy_parts(file, rows)
                return
    except Exception as error:
        # NumPy, zipfile and the decompressors raise many kinds; some quote what they read.
        expected = "a NumPy archive (.npz) without pickled objects or a password"
        raise base.unreadable(path, expected, error) from None
    found = ", ".join(sorted(name.removesuffix(".npy") for name in names)) or "none"
    raise DataError(f"{path}: an array named {key!r} was expected, found {found}")


def _npy_parts(file: IO[bytes], rows: int | None) -> Iterator[np.ndarray]:
    """Yield the rows of an `.npy` file, once if there are none; raise ValueError if it is none."""
    with base.silenced():
        old = npy.read_magic(file) == (1, 0)
        header = npy.read_array_header_1_0(file) if old else npy.read_array_header_2_0(file)
    shape, by_columns, kind = header
    if kind.hasobject or not shape or min(shape) < 0:
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


class IdxSource(base.SourceOptions):
    """Load a pair of IDX files, the format of MNIST, plain or gzipped.

    They hold grey images [N,H,W] and labels [N], both as unsigned bytes.
    """

    kind: Literal["idx"]
    images: Path
    labels: Path

    def batches(
        self, size: int, channels: int, classes: Sequence[str]
    ) -> Iterator[LabelledRecords]:
        """Read both files; see `SourceOptions.batches`."""
        with _opened(self.labels, 1) as (lengths, file):
            (labels,) = _idx_parts(file, self.labels, lengths, lengths[0])
        with _opened(self.images, 3) as (lengths, file):
            # Before anything large is read.
            if lengths[1:] != (size, size):
                raise DataError(
                    f"{self.images}: images of {size}×{size} were expected, "
                    f"found {'×'.join(map(str, lengths[1:]))}; resize them or change the spec"
                )
            done = 0
            for images in _idx_parts(
                file, self.images, lengths, base.rows_at_a_time(size, channels)
            ):
                if lengths[0] != len(labels):
                    raise DataError(
                        f"{self.labels}: {lengths[0]} labels were expected, one for each image of "
                        f"{self.images}, found {len(labels)}"
                    )
                part, done = labels[done : done + len(images)], done + len(images)
                yield base.checked(
                    images[..., np.newaxis], part, size, channels, classes, self.images
                )


def _idx_parts(
    file: BufferedIOBase, path: Path, lengths: tuple[int, ...], rows: int
) -> Iterator[np.ndarray]:
    """Yield the values after a header, uint8, up to `rows` along the first axis; once if empty."""
    one, wanted, done = math.prod(lengths[1:]), math.prod(lengths), 0
    for start in range(0, lengths[0] or 1, max(1, rows)):
        size = one * min(rows, lengths[0] - start)
        data = _read_at_most(file, size)
        done += len(data)
        last = done == wanted
        if len(data) != size or (last and file.read(1)):
            found = "more" if last else f"{done}: the file is truncated"
            raise DataError(
                f"{path}: its header says {'×'.join(map(str, lengths))}, so {wanted} bytes were "
                f"expected after it, found {found}"
            )
        yield np.frombuffer(data, dtype=np.uint8).reshape(-1, *lengths[1:])


def _read_header(file: BufferedIOBase, path: Path, dimensions: int) -> tuple[int, ...]:
    # Big-endian: magic 0x00 0x00 type dimensions, then each length, then the values.
    header = file.read(4 + 4 * dimensions)
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if header[:4] != magic:
        raise DataError(
            f"{path}: an IDX file of unsigned bytes with {dimensions} dimension(s) was expected "
            f"(it begins with {magic.hex()}), found {header[:4].hex() or 'an empty file'}"
        )
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path}: the IDX header is truncated")
    return struct.unpack(f">{dimensions}I", header[4:])


def _read_at_most(file: BufferedIOBase, limit: int) -> bytearray:
    # Piecewise, because a damaged header may claim more than memory holds.
    data = bytearray()
    while len(data) < limit and (chunk := file.read(min(_CHUNK, limit - len(data)))):
        data += chunk
    return data


@contextmanager
def _opened(path: Path, dimensions: int) -> Iterator[tuple[tuple[int, ...], BufferedIOBase]]:
    """Yield the lengths of an IDX file of unsigned bytes, and the file where its values begin."""
    _require_file(path)
    try:
        with path.open("rb") as plain:
            # Gzip is recognised by the content.
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if not zipped:
                yield _read_header(plain, path, dimensions), plain
                return
            with gzip.GzipFile(fileobj=plain) as unzipped:
                yield _read_header(unzipped, path, dimensions), unzipped
    except DataError:
        raise
    except Exception as error:
        raise base.unreadable(path, "an IDX file, plain or gzipped,", error) from None


def _require_file(path: Path) -> None:
    """Raise DataError unless `path` is a file."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise DataError(f"{path}: a file was expected, found {found}")
