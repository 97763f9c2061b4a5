"""A folder with one sub-folder of PNG or JPEG images for each class."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.sources import base
from pipeline.sources.base import SourceOptions
from privacy.errors import DataError
from privacy.records import LabelledRecords

_SUFFIXES = (".png", ".jpg", ".jpeg")


class FolderSource(SourceOptions):
    """Load `path/<class>/*.png|jpg|jpeg`, class by class, by name within a class.

    The class list is the spec's: any other folder is an error, not a new class. Hidden files (their
    names begin with a dot) are ignored.
    """

    kind: Literal["folder"]
    path: Path

    def batches(
        self, size: int, channels: int, classes: Sequence[str]
    ) -> Iterator[LabelledRecords]:
        """Decode every image; see `SourceOptions.batches`."""
        base.check_spec(channels, classes)
        if not self.path.is_dir():
            found = "a file" if self.path.exists() else "nothing"
            raise DataError(f"{self.path}: a folder was expected, found {found}")
        self._refuse_others(classes)
        files = [
            (file, label)
            for label, name in enumerate(classes)
            for file in _images(self.path / name)
        ]
        rows = base.rows_at_a_time(size, channels)
        for start in range(0, len(files) or 1, rows):
            part = files[start : start + rows]
            images = np.empty((len(part), size, size, channels), dtype=np.uint8)
            for row, (file, _) in enumerate(part):
                images[row] = base.decode_image(file, size, channels, file)
            labels = np.array([label for _, label in part], dtype=np.int64)
            yield base.checked(images, labels, size, channels, classes, self.path)

    def _refuse_others(self, classes: Sequence[str]) -> None:
        for entry in _visible(self.path):
            if not entry.is_dir():
                raise DataError(f"{entry}: folders named after the classes were expected here only")
            if entry.name not in classes:
                raise DataError(
                    f"{entry}: this folder is none of the spec's classes ({', '.join(classes)}); "
                    "add it to the spec or move it away"
                )


def _images(folder: Path) -> Iterator[Path]:
    """Yield the images of one class; a class without a folder has none."""
    if not folder.is_dir():
        return
    for file in _visible(folder):
        if not file.is_file() or file.suffix.lower() not in _SUFFIXES:
            raise DataError(f"{file}: a file ending in {', '.join(_SUFFIXES)} was expected")
        yield file


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
