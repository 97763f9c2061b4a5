"""Parquet files with Hugging Face's columns: what `datasets` writes, and Umbra's own shards."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.sources import base
from pipeline.sources.base import SourceOptions
from privacy.errors import DataError
from privacy.records import LabelledRecords

if TYPE_CHECKING:
    # Specs name this source, and are read where half a second counts: imported when it loads.
    import pyarrow as pa

_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")


class ParquetSource(SourceOptions):
    """Load one Parquet file, or all those in a folder and its sub-folders, sorted by path.

    Columns: `image`, a struct with the encoded PNG or JPEG in `bytes`; `label`, an integer. Where
    the file names its classes, they must be the spec's, in the same order.
    """

    kind: Literal["parquet"]
    path: Path

    def batches(
        self, size: int, channels: int, classes: Sequence[str]
    ) -> Iterator[LabelledRecords]:
        """Decode every row; see `SourceOptions.batches`."""
        base.check_spec(channels, classes)
        found, rows = False, base.rows_at_a_time(size, channels)
        for file in _files(self.path):
            row = 0
            for part in _read(file, classes, rows):
                images = np.empty((len(part), size, size, channels), dtype=np.uint8)
                for index, png in enumerate(_encoded(part, file)):
                    where = f"{file}, row {row + index}"
                    images[index] = base.decode_image(png, size, channels, where)
                row += len(part)
                labels = part["label"].to_numpy().astype(np.int64)
                found = True
                yield base.checked(images, labels, size, channels, classes, self.path)
        if not found:
            raise DataError(f"{self.path}: the data set is empty: one record was expected")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [file for file in sorted(path.rglob("*.parquet")) if not file.name.startswith(".")]
    if not found:
        raise DataError(f"{path}: a Parquet file or a folder with some was expected, found none")
    splits = {match[1] for file in found if (match := _SHARD.fullmatch(file.name))}
    if len(splits) > 1:
        # Training on a held-out split unnoticed would spoil every measurement made with it.
        raise DataError(
            f"{path}: files of one split were expected, found {', '.join(sorted(splits))}; "
            "name a file, or a folder with one split"
        )
    return found


def _read(file: Path, classes: Sequence[str], rows: int) -> "Iterator[pa.Table]":
    """Yield up to `rows` rows of a file at a time, none empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            _check_columns(opened.schema_arrow, file)
            _check_names(opened.schema_arrow, classes, file)
            for batch in opened.iter_batches(rows, columns=["image", "label"]):
                table = pa.Table.from_batches([batch])
                table.validate(full=True)
                if table["label"].null_count:
                    raise DataError(
                        f"{file}: a label in every row was expected, found rows without"
                    )
                if len(table):
                    yield table
    except (OSError, pa.ArrowException):
        # Not chained: Arrow's texts may quote what it read.
        raise DataError(f"{file}: the Parquet file is damaged or cannot be read") from None


def _check_columns(schema: "pa.Schema", file: Path) -> None:
    from pyarrow.types import is_integer, is_struct

    found = {field.name: field.type for field in schema}
    image, label = found.get("image"), found.get("label")
    sound = image is not None and is_struct(image) and image.get_field_index("bytes") >= 0
    if not sound or label is None or not is_integer(label):
        columns = ", ".join(f"{name}: {kind}" for name, kind in found.items())
        raise DataError(
            f"{file}: columns image: struct<bytes: binary, path: string> and label: int64 were "
            f"expected, found {columns}"
        )


def _check_names(schema: "pa.Schema", classes: Sequence[str], file: Path) -> None:
    """Refuse a file whose labels mean other classes than the spec's."""
    try:
        metadata: Any = json.loads((schema.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return  # the file does not name its classes
    if list(names) != list(classes):
        raise DataError(
            f"{file}: the spec's classes ({', '.join(classes)}) were expected, in this order, "
            f"found {', '.join(map(str, names))}"
        )


def _encoded(table: "pa.Table", file: Path) -> Iterator[bytes]:
    from pyarrow.compute import struct_field

    for value in struct_field(table["image"], "bytes"):
        if not value.is_valid:
            raise DataError(f"{file}: an image inside the file in every row was expected")
        yield value.as_py()
