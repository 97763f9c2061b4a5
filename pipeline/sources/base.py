"""The contract of every data source: the images as they are, checked against the spec, or an error.

Size, channels and classes come from the spec and are never measured on the data; nothing is
resized, cropped or converted. An error says where, what was expected and what was found (types,
shapes, formats), and never a pixel, a label or the name of a file that the spec does not name:
those are private, and error texts reach logs. Such a name is a note to the error (PEP 678).

Shape suffixes: N images, H height, W width, C channels.
"""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from privacy.durable import write_file
from privacy.errors import DataError, UmbraError
from privacy.records import LabelledRecords

# Grey and RGB.
CHANNELS = (1, 3)
_PART_BYTES = 2**24


class SourceOptions(BaseModel, ABC):
    """The section `data.source` of a spec; its `kind` names the source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def batches(
        self, size: int, channels: int, classes: Sequence[str]
    ) -> Iterator[LabelledRecords]:
        """Read the set a part at a time, each by `checked`, so that no reader need hold it all.

        What is wrong with a later part shows when it is read. `rows_at_a_time` says how many
        records make a part.

        Args:
            size: height and width of every image.
            channels: 1 (grey) or 3 (RGB).
            classes: the class names; label i belongs to the i-th.

        Raises:
            DataError: a file is missing, damaged or not what the spec says, or there is no record.
        """

    def load(self, size: int, channels: int, classes: Sequence[str]) -> LabelledRecords:
        """Read the whole set into memory; see `batches`."""
        return LabelledRecords.concatenate(self.batches(size, channels, classes))

    def resolved(self, folder: Path) -> Self:
        """Return the same options with relative paths taken from `folder`, the spec's own."""
        paths = {
            name: resolve(value, folder)
            for name, value in self.__dict__.items()
            if isinstance(value, Path)
        }
        return self.model_copy(update=paths)


def resolve(path: Path, folder: Path) -> Path:
    """Return `path`, `~` replaced, taken from `folder` where it is relative."""
    try:
        return folder / path.expanduser()
    except RuntimeError:
        # There is no such user, so that this is a name that begins with ~.
        return folder / path


def checked(
    images: np.ndarray,
    labels: np.ndarray,
    size: int,
    channels: int,
    classes: Sequence[str],
    where: str | Path,
) -> LabelledRecords:
    """Return images uint8 [N,H,W,C] and integer labels [N] as a set if they are what the spec says.

    `where` is the file or folder to name in an error.

    Raises:
        DataError: a shape, a type or a label does not fit.
    """
    check_spec(channels, classes)
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where}: labels of an integer type were expected, found {labels.dtype}")
    if images.shape[1:] != (size, size, channels):
        raise DataError(
            f"{where}: images of {size}×{size}×{channels} (height, width, channels) were expected, "
            f"found {'×'.join(map(str, images.shape[1:]))}; resize them or change the spec"
        )
    if labels.size and (labels.min() < 0 or labels.max() >= len(classes)):
        raise DataError(
            f"{where}: labels from 0 to {len(classes) - 1} were expected (the spec has "
            f"{len(classes)} classes), found labels outside"
        )
    try:
        return LabelledRecords(np.ascontiguousarray(images), labels.astype(np.int64))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def rows_at_a_time(size: int, channels: int) -> int:
    """Return how many records of a source are in memory at a time: 16 MiB, at least one."""
    return max(1, _PART_BYTES // (size * size * channels))


def check_spec(channels: int, classes: Sequence[str]) -> None:
    """Raise DataError for a number of channels or a class list that no data could fit."""
    if channels not in CHANNELS:
        raise DataError(f"channels: 1 (grey) or 3 (RGB) was expected, found {channels}")
    if not classes or len(set(classes)) != len(classes):
        raise DataError("classes: at least one name and no name twice were expected")


@contextmanager
def silenced() -> Iterator[None]:
    """Keep libraries from warning about what they decode: the texts may quote it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def noting(*names: Path) -> Iterator[None]:
    """Note the names of files, which may be private, to an error of the block."""
    try:
        yield
    except DataError as error:
        for name in names:
            error.add_note(f"in {name}")
        raise


def keep_names(error: UmbraError, folder: Path) -> None:
    """Write the names that an error has noted to `folder`, and let the error say where they are."""
    if notes := getattr(error, "__notes__", ()):
        path = folder / "data-error.txt"
        write_file(path, "\n".join([str(error), *notes, ""]).encode())
        error.args = (f"{error}. Which of them is in {path}",)


def unreadable(where: str | Path, expected: str, error: Exception) -> DataError:
    """Return the error to raise where a library cannot read a file: why, without quoting it."""
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else type(error).__name__
    return DataError(
        f"{where}: {expected} was expected, found something else or a damaged file ({reason})"
    )
