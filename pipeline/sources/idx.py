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

from pipeline.sources.base import SourceOptions, checked, require_file, rows_at_a_time
from privacy.errors import DataError
from privacy.records import LabelledRecords

_UNSIGNED_BYTE = 0x08
_CHUNK = 1 << 20


class IdxSource(SourceOptions):
    """Load a pair of IDX files: grey images [N,H,W] and labels [N], both of unsigned bytes."""

    kind: Literal["idx"]
    images: Path
    labels: Path

    def batches(
        self, size: int, channels: int, classes: Sequence[str]
    ) -> Iterator[LabelledRecords]:
        """Read both files; see `SourceOptions.batches`."""
        with _opened(self.labels, 1) as (lengths, file):
            (labels,) = _parts(file, self.labels, lengths, lengths[0])
        with _opened(self.images, 3) as (lengths, file):
            # Before anything large is read.
            if lengths[1:] != (size, size):
                raise DataError(
                    f"{self.images}: images of {size}×{size} were expected, "
                    f"found {'×'.join(map(str, lengths[1:]))}; resize them or change the spec"
                )
            done = 0
            for images in _parts(file, self.images, lengths, rows_at_a_time(size, channels)):
                if lengths[0] != len(labels):
                    raise DataError(
                        f"{self.labels}: {lengths[0]} labels were expected, one for each image of "
                        f"{self.images}, found {len(labels)}"
                    )
                part, done = labels[done : done + len(images)], done + len(images)
                yield checked(images[..., np.newaxis], part, size, channels, classes, self.images)


def _parts(file: BinaryIO, path: Path, lengths: tuple[int, ...], rows: int) -> Iterator[np.ndarray]:
    """Yield the values after a header, uint8, up to `rows` along the first axis; once if empty.

    Raises:
        DataError: the file is truncated or too long.
    """
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
def _opened(path: Path, dimensions: int) -> Iterator[tuple[tuple[int, ...], BinaryIO]]:
    """Yield the lengths of an IDX file of unsigned bytes, and the file where its values begin.

    Gzip is recognised by the content.

    Raises:
        DataError: it is missing, damaged, or of another type.
    """
    require_file(path)
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if not zipped:
                yield _read_header(plain, path, dimensions), plain
                return
            with gzip.open(plain) as file:
                unzipped = cast(BinaryIO, file)
                yield _read_header(unzipped, path, dimensions), unzipped
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the file is damaged or cannot be read") from error
