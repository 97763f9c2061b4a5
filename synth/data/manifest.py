"""The manifest of a synthetic data set: `manifest.json` with rows, bytes and sha256 of every file.

A data set folder holds `manifest.json` and, below `data/`, its shards. An export has the same
manifest, which then lists its documents too.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from privacy.durable import is_leftover
from privacy.errors import IntegrityBroken, InvalidRequest
from synth.storage import StoragePath, json_bytes, relative, remove_leftovers, write_bytes

MANIFEST = "manifest.json"
DATA = "data"
_FORMAT = 1


@dataclass(frozen=True)
class FileEntry:
    """One file: its path below the data set folder (with /), its length and its sha256 in hex."""

    file: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        path = PurePosixPath(self.file)
        # A manifest may come from anybody: it must not make us read outside its folder.
        if not self.file or path.is_absolute() or ".." in path.parts or "\\" in self.file:
            raise IntegrityBroken(f"a manifest names a file outside its folder: {self.file!r}")


@dataclass(frozen=True)
class ShardEntry(FileEntry):
    """One file that holds records: `rows` of them."""

    rows: int


@dataclass(frozen=True)
class Manifest:
    """The files of a data set and what they contain."""

    #: (H, W, C) of every image.
    image_shape: tuple[int, int, int]
    #: The name of label 0, 1, …
    class_names: tuple[str, ...]
    #: How many records each label has.
    class_counts: tuple[int, ...]
    #: The files that hold records, in order.
    shards: tuple[ShardEntry, ...]
    #: The other files of an export (card, label table); a release has none.
    documents: tuple[FileEntry, ...] = ()

    def __post_init__(self) -> None:
        if len(self.class_names) != len(self.class_counts):
            raise InvalidRequest(
                f"{len(self.class_names)} class names, {len(self.class_counts)} class counts"
            )
        if sum(self.class_counts) != self.rows:
            raise InvalidRequest(
                f"class counts add up to {sum(self.class_counts)}, rows of shards to {self.rows}"
            )
        names = [entry.file for entry in self.files]
        if len(set(names)) != len(names):
            raise InvalidRequest("a file is listed twice in a manifest")

    @property
    def rows(self) -> int:
        """Number of records in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Total length of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All listed files."""
        return (*self.shards, *self.documents)

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form, with totals."""
        # Lists and not tuples, so that a record read back is equal to this.
        fields = {key: list(value) for key, value in asdict(self).items()}
        return {"format": _FORMAT, "rows": self.rows, "bytes": self.bytes, **fields}

    def write(self, folder: StoragePath) -> str:
        """Write `manifest.json` into `folder` atomically; return its sha256 in hex."""
        remove_leftovers(folder / DATA)
        data = json_bytes(self.to_record())
        write_bytes(folder / MANIFEST, data)
        return hashlib.sha256(data).hexdigest()


def count_rows(path: StoragePath) -> int | None:
    """Return the number of records in a file; None if it is too damaged to count them.

    Parquet, tar and npz files are counted; a file of any other format is one record, an image.
    """
    if path.suffix not in (".parquet", ".tar", ".npz"):
        return 1
    try:
        with path.open("rb") as file:
            if path.suffix == ".parquet":
                return int(pq.read_metadata(file).num_rows)
            if path.suffix == ".npz":
                with np.load(file, allow_pickle=False) as arrays:
                    return len(arrays["labels"])
            with tarfile.open(fileobj=file) as tar:
                return sum(member.name.endswith(".cls") for member in tar)
    except Exception:
        # Arrow, NumPy, tarfile and zipfile raise many kinds over damaged bytes.
        return None


def load_manifest(folder: StoragePath) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        IntegrityBroken: it is missing, not JSON, of another format or contradicts itself.
    """
    path = folder / MANIFEST
    try:
        record = json.loads(path.read_bytes())
        manifest = _from_record(record)
    except FileNotFoundError:
        raise IntegrityBroken(
            f"{path} is missing: the data set is not finished, or this is not its folder"
        ) from None
    except (ValueError, KeyError, TypeError, InvalidRequest) as error:
        raise IntegrityBroken(f"{path} is damaged: {error}") from error
    if record != manifest.to_record():
        raise IntegrityBroken(f"{path} is damaged: totals or fields do not match its own entries")
    return manifest


def manifest_sha256(folder: StoragePath) -> str:
    """Return the sha256 in hex of `folder/manifest.json`; raise IntegrityBroken without one."""
    path = folder / MANIFEST
    if not path.is_file():
        raise IntegrityBroken(f"{path} is missing")
    return file_sha256(path)


def file_sha256(path: StoragePath) -> str:
    """Return the sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(folder: StoragePath, file: str) -> FileEntry:
    """Return the entry of `folder/file`, measured."""
    path = folder / file
    return FileEntry(file, path.stat().st_size, file_sha256(path))


def shard_entry(folder: StoragePath, file: str) -> ShardEntry:
    """Return the entry of the shard `folder/file`, measured, with its number of rows.

    Raises:
        IntegrityBroken: it is missing or its footer is damaged.
    """
    path = folder / file
    rows = count_rows(path) if path.exists() else None
    if rows is None:
        raise IntegrityBroken(f"{path} is missing or damaged: make the shard again")
    return ShardEntry(**asdict(file_entry(folder, file)), rows=rows)


def verify(folder: StoragePath) -> list[str]:
    """Compare the data set in `folder` with its manifest.

    Returns one sentence for every file that is missing, was changed, holds another number of rows
    or lies in `data/` without being listed; none if all is well.
    """
    try:
        manifest = load_manifest(folder)
    except IntegrityBroken as error:
        return [str(error)]
    return [*differences(folder, manifest), *unlisted(folder, folder / DATA, manifest)]


def differences(folder: StoragePath, manifest: Manifest) -> list[str]:
    """Return one sentence for every listed file that is not as the manifest says."""
    findings = [line for entry in manifest.files for line in _compare(folder, entry)]
    if not findings:
        findings.extend(_compare_counts(folder, manifest))
    return findings


def unlisted(
    folder: StoragePath, below: StoragePath, manifest: Manifest, ignore: Sequence[str] = ()
) -> list[str]:
    """Return one sentence for every file under `below` that the manifest of `folder` lacks."""
    known = {entry.file for entry in manifest.files} | {MANIFEST, *ignore}
    found = (path for path in below.rglob("*") if path.is_symlink() or not path.is_dir())
    # Temporary files of a killed writer are not part of a data set.
    names = sorted(relative(path, folder) for path in found if not is_leftover(path.name))
    return [f"extra: {name} is not in the manifest" for name in names if name not in known]


def _compare(folder: StoragePath, entry: FileEntry) -> Iterable[str]:
    path = folder / entry.file
    if not path.is_file():
        yield f"missing: {entry.file}"
        return
    size = path.stat().st_size
    if size != entry.bytes:
        yield f"changed: {entry.file} has {size} bytes, the manifest says {entry.bytes}"
    elif file_sha256(path) != entry.sha256:
        yield f"changed: {entry.file} does not have the sha256 of the manifest"
    if isinstance(entry, ShardEntry) and (rows := count_rows(path)) not in (None, entry.rows):
        yield f"rows: {entry.file} holds {rows} rows, the manifest says {entry.rows}"


def _compare_counts(folder: StoragePath, manifest: Manifest) -> Iterable[str]:
    # The hashes of the shards say nothing about the class counts beside them, so count again.
    shards = [folder / shard.file for shard in manifest.shards]
    if not shards or any(path.suffix != ".parquet" for path in shards):
        return
    counts = np.zeros(len(manifest.class_counts), dtype=np.int64)
    for path in shards:
        with path.open("rb") as file:
            labels = pq.read_table(file, columns=["label"])["label"].to_numpy()
        if labels.size and not 0 <= labels.min() <= labels.max() < len(counts):
            yield f"labels: {path.name} has labels without a class name"
            return
        counts += np.bincount(labels, minlength=len(counts))
    if tuple(counts.tolist()) != manifest.class_counts:
        yield "rows: the manifest's class counts are not those of its shards"


def _from_record(record: dict[str, Any]) -> Manifest:
    if record["format"] != _FORMAT:
        raise ValueError(f"format {_FORMAT} was expected, found {record['format']!r}")
    height, width, channels = record["image_shape"]
    return Manifest(
        image_shape=(height, width, channels),
        class_names=tuple(record["class_names"]),
        class_counts=tuple(record["class_counts"]),
        shards=tuple(ShardEntry(**entry) for entry in record["shards"]),
        documents=tuple(FileEntry(**entry) for entry in record["documents"]),
    )
