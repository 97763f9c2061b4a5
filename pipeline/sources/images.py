"""Encoded images, PNG or JPEG: in folders named after the classes, or in Parquet files.

An image is taken exactly as it is stored and shown, or refused with what to do.

Shape suffixes: N images, H height, W width, C channels.
"""

import json
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal
from unicodedata import normalize

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.sources import base
from privacy.errors import DataError
from privacy.records import LabelledRecords

if TYPE_CHECKING:
    # Specs name these sources, and are read where half a second counts: imported on loading.
    import pyarrow as pa

_MODES = dict(zip(base.CHANNELS, ("L", "RGB"), strict=True))
_MODE_NAMES = {"L": "8-bit grey", "RGB": "8-bit RGB"}
_SUFFIXES = (".png", ".jpg", ".jpeg")
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# As in `testset` and `traindata`.
_SET = re.compile(r"(?<=.)(set|data|split|images)s?$")
# The words by which `datasets` tells splits apart, and two more.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout", "heldout"), "test"),
}


class FolderSource(base.SourceOptions):
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
        folders = self._class_folders(classes)
        files = [(file, label) for label, folder in enumerate(folders) for file in _images(folder)]
        rows = base.rows_at_a_time(size, channels)
        for start in range(0, len(files) or 1, rows):
            part = files[start : start + rows]
            images = np.empty((len(part), size, size, channels), dtype=np.uint8)
            for row, (file, _) in enumerate(part):
                where = f"{self.path}, image {start + row + 1} of {len(files)}"
                with base.noting(file):
                    images[row] = decode_image(file, size, channels, where)
            labels = np.array([label for _, label in part], dtype=np.int64)
            yield base.checked(images, labels, size, channels, classes, self.path)

    def _class_folders(self, classes: Sequence[str]) -> list[Path | None]:
        """Return the folder of each class; None for a class without one, which has no images."""
        names = [_folder_name(name) for name in classes]
        if len(set(names)) < len(names):
            raise DataError("classes: two names differ only in how Unicode spells them; rename one")
        entries = {entry: normalize("NFC", entry.name) for entry in sorted(self.path.iterdir())}
        # A Mac writes é as e and an accent, a spec as one letter: they are one name.
        found = {name: entry for entry, name in entries.items() if name in names}
        others = [
            entry
            for entry, name in entries.items()
            if not (name in names and entry.is_dir()) and (name in names or name[0] != ".")
        ]
        if len(found) < sum(name in names for name in entries.values()):
            with base.noting(*entries):
                raise DataError(
                    f"{self.path}: two folders have the name of one class and differ only in how "
                    "Unicode spells it; rename or merge them"
                )
        if others:
            with base.noting(*others):
                raise DataError(
                    f"{self.path}: folders named after the classes ({', '.join(classes)}) were "
                    f"expected here only, found {len(others)} others; add them to the spec or "
                    "move them away"
                )
        # Looked up and never joined to the path: `../x` must not lead out of the folder.
        return [found.get(name) for name in names]


def _folder_name(class_name: str) -> str:
    if PurePath(class_name).parts != (class_name,) or class_name == "..":
        raise DataError(
            f"class {class_name!r}: a name that one sub-folder can have was expected; rename the "
            "class in the spec and its folder"
        )
    return normalize("NFC", class_name)


def _images(folder: Path | None) -> list[Path]:
    files = sorted(folder.iterdir()) if folder else []
    visible = [file for file in files if not file.name.startswith(".")]
    others = [file for file in visible if not _is_image(file)]
    if folder and others:
        with base.noting(*others):
            raise DataError(
                f"{folder.parent}: only files ending in {', '.join(_SUFFIXES)} were expected in "
                "the folders of the classes, found others; convert them or move them away"
            )
    return visible


def _is_image(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in _SUFFIXES


class ParquetSource(base.SourceOptions):
    """Load one Parquet file, or all those in a folder and its sub-folders, sorted by path.

    Columns: `image`, a struct with the encoded PNG or JPEG in `bytes`; `label`, an integer. Where
    the file names its classes, they must be the spec's, in the same order. In a folder, what begins
    with a dot or an underscore is passed over, and all files have to be of one split.
    """

    kind: Literal["parquet"]
    path: Path

    def batches(
        self, size: int, channels: int, classes: Sequence[str]
    ) -> Iterator[LabelledRecords]:
        """Decode every row; see `SourceOptions.batches`."""
        base.check_spec(channels, classes)
        found, rows = False, base.rows_at_a_time(size, channels)
        files = _files(self.path)
        for number, file in enumerate(files, start=1):
            single = file == self.path
            where = str(file) if single else f"{self.path}, file {number} of {len(files)}"
            with base.noting(*[] if single else [file]):
                row = 0
                for part in _read(file, classes, rows, where):
                    found = True
                    images = np.empty((len(part), size, size, channels), dtype=np.uint8)
                    for index, encoded in enumerate(_encoded(part, where)):
                        place = f"{where}, row {row + index}"
                        images[index] = decode_image(encoded, size, channels, place)
                    row += len(part)
                    labels = part["label"].to_numpy()
                    yield base.checked(images, labels, size, channels, classes, where)
        if not found:
            raise DataError(f"{self.path}: the data set is empty: one record was expected")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    # Spark names folders like files, notebooks and downloads keep second copies in hidden folders.
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() == ".parquet"
        and file.is_file()
        and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
    ]
    if not found:
        raise DataError(f"{path}: a Parquet file or a folder with some was expected, found none")
    splits = {_split(file.relative_to(path)) for file in found}
    if len(splits) > 1:
        # Training on a held-out split unnoticed would spoil every measurement made with it.
        raise DataError(
            f"{path}: files of one split were expected, found {', '.join(sorted(splits))}; "
            "name a file, or a folder with one split"
        )
    return found


def _split(file: PurePath) -> str:
    """Return the split that any part of a path names."""
    words = {_SET.sub("", word.lower()) for part in file.parts for word in _WORD.findall(part)}
    names = {_SPLITS[word] for word in words & _SPLITS.keys()}
    if match := _SHARD.fullmatch(file.name):
        names.add(_SPLITS.get(match[1].lower(), match[1]))
    return "/".join(sorted(names)) or "files that name no split"


def _read(file: Path, classes: Sequence[str], rows: int, where: str) -> Iterator["pa.RecordBatch"]:
    """Yield up to `rows` rows of a file at a time, none empty."""
    import pyarrow.parquet as pq

    try:
        # Not `read_table`, which infers columns from folders named like `label=3`.
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            _check_columns(opened.schema_arrow, where)
            _check_names(opened.schema_arrow, classes, where)
            for batch in opened.iter_batches(rows, columns=["image", "label"]):
                batch.validate(full=True)
                if batch["label"].null_count:
                    raise DataError(
                        f"{where}: a label in every row was expected, found rows without"
                    )
                if len(batch):
                    yield batch
    except DataError:
        raise
    except Exception as error:
        # Arrow raises many kinds, and some quote what it read.
        raise base.unreadable(where, "a Parquet file", error) from None


def _encoded(batch: "pa.RecordBatch", where: str) -> Iterator[bytes]:
    for image in batch["image"]:
        encoded = image["bytes"].as_py() if image.is_valid else None
        if encoded is None:
            raise DataError(f"{where}: an image inside the file in every row was expected")
        yield encoded


def _check_columns(schema: "pa.Schema", where: str) -> None:
    import pyarrow as pa
    from pyarrow import types

    found = {field.name: field.type for field in schema}
    image, label = found.get("image"), found.get("label")
    # Other tools write the bytes as lists of numbers or as Base64.
    kinds = (pa.binary(), pa.large_binary(), pa.binary_view())
    sound = image is not None and types.is_struct(image) and image.get_field_index("bytes") >= 0
    sound = sound and found["image"].field("bytes").type in kinds
    if not sound or label is None or not types.is_integer(label):
        columns = ", ".join(f"{name}: {kind}" for name, kind in found.items())
        raise DataError(
            f"{where}: columns image: struct<bytes: binary, path: string> and label: int64 were "
            f"expected, found {columns}; write the encoded image files as binary"
        )


def _check_names(schema: "pa.Schema", classes: Sequence[str], where: str) -> None:
    """Refuse a file whose labels mean other classes than the spec's."""
    try:
        metadata: Any = json.loads((schema.metadata or {})[b"huggingface"])
        names = list(metadata["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError):
        # The file does not name its classes.
        return
    if names != list(classes):
        found = ", ".join(map(str, names))
        same = normalize("NFC", found) == normalize("NFC", ", ".join(classes))
        raise DataError(
            f"{where}: the spec's classes ({', '.join(classes)}) were expected, in this order, "
            f"found {found}{' (only Unicode spells them differently)' if same else ''}"
        )


@base.silenced()
def decode_image(source: Path | bytes, size: int, channels: int, where: str | Path) -> np.ndarray:
    """Decode one PNG or JPEG of exactly the expected size and colour to uint8 [H,W,C].

    Raises:
        DataError: it is missing, damaged, of another format, size or colour, or other programs show
            other pixels than are stored.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        with Image.open(BytesIO(data), formats=["PNG", "JPEG"]) as image:
            _check_header(image, data, size, channels, where)
            # Decoding alone passes over wrong checksums; this uses up the image.
            image.verify()
        with Image.open(BytesIO(data), formats=["PNG", "JPEG"]) as image:
            pixels = np.asarray(image).reshape(size, size, channels)
            _check_shown(image, where)
            return pixels
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{where}: a PNG or JPEG was expected, found something else; convert it"
        ) from None
    except Exception as error:
        # Pillow raises many kinds over damaged images, and its texts may quote what it read.
        raise base.unreadable(where, "a PNG or JPEG of 8 bits a channel", error) from None


def _check_header(
    image: Image.Image, data: bytes, size: int, channels: int, where: str | Path
) -> None:
    # Checked before anything is decoded, so that no huge image is unpacked.
    if image.size != (size, size):
        width, height = image.size
        raise DataError(
            f"{where}: an image of {size}×{size} pixels was expected, "
            f"found {height}×{width} (height, width); resize it or change the spec"
        )
    # Pillow calls a colour PNG of 16 bits a channel RGB, too, and drops the lower eight. The depth
    # is byte 24 of every PNG.
    deep = image.format == "PNG" and data[24] > 8
    if image.mode != _MODES[channels] or deep:
        found = _MODE_NAMES.get(image.mode, f"mode {image.mode}")
        raise DataError(
            f"{where}: an {_MODE_NAMES[_MODES[channels]]} image was expected, found "
            f"{found.replace('8-bit', '16-bit') if deep else found}; convert it"
        )


def _check_shown(image: Image.Image, where: str | Path) -> None:
    """Refuse what makes other programs show other pixels than those that are stored."""
    reasons = {
        "a transparent colour: remove the transparency": "transparency" in image.info,
        "several frames: save the one that is meant": getattr(image, "n_frames", 1) > 1,
        "an EXIF orientation: turn the pixels (`mogrify -auto-orient`) and remove it": (
            image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise DataError(
                f"{where}: an image that is shown as it is stored was expected, found {reason}"
            )
