"""IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.

A file is a big-endian header (magic 0x00 0x00 type dimensions, then each length) and the values.
Format: http://yann.lecun.com/exdb/mnist, "the IDX file format".
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np

from pipeline.sources.base import SourceOptions, checked, require_file
from privacy.errors import DataError
from privacy.records import LabelledRecords

_UNSIGNED_BYTE = 0x08
_CHUNK = 1 << 20


class IdxSource(SourceOptions):
    """Load a pair of IDX files: grey images [N,H,W] and labels [N], both of unsigned bytes."""

    kind: Literal["idx"]
    images: Path
    labels: Path

    def load(self, size: int, channels: int, classes: Sequence[str]) -> LabelledRecords:
        """Read both files; see `SourceOptions.load`."""
        images = read_idx(self.images, dimensions=3, expected=(size, size))
        labels = read_idx(self.labels, dimensions=1)
        if len(images) != len(labels):
            raise DataError(
                f"{self.labels}: {len(images)} labels were expected, one for each image of "
                f"{self.images}, found {len(labels)}"
            )
        return checked(images[..., np.newaxis], labels, size, channels, classes, self.images)


def read_idx(path: Path, dimensions: int, expected: tuple[int, ...] | None = None) -> np.ndarray:
    """Read one IDX file of unsigned bytes.

    Gzip is recognised by the content. `expected` are the lengths after the first, which are checked
    before anything large is read.

    Raises:
        DataError: it is missing, damaged, truncated, too long, or of another type or shape.
    """
    require_file(path)
    with _opened(path) as file:
        lengths = _read_header(file, path, dimensions)
        if expected is not None and lengths[1:] != expected:
            raise DataError(
                f"{path}: images of {'×'.join(map(str, expected))} were expected, "
                f"found {'×'.join(map(str, lengths[1:]))}; resize them or change the spec"
            )
        wanted = math.prod(lengths)
        data = _read_at_most(file, wanted + 1)
    if len(data) != wanted:
        found = "more" if len(data) > wanted else f"{len(data)}: the file is truncated"
        raise DataError(
            f"{path}: its header says {'×'.join(map(str, lengths))}, so {wanted} bytes were "
            f"expected after it, found {found}"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(lengths)


def _read_header(file: BinaryIO, path: Path, dimensions: int) -> tuple[int, ...]:
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


def _read_at_most(file: BinaryIO, limit: int) -> bytearray:
    # Piecewise, because a damaged header may claim more than memory holds.
    data = bytearray()
    while len(data) < limit and (chunk := file.read(min(_CHUNK, limit - len(data)))):
        data += chunk
    return data


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if not zipped:
                yield plain
                return
            with gzip.open(plain) as unzipped:
                yield cast(BinaryIO, unzipped)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the file is damaged or cannot be read") from error
