"""Exports: a synthetic data set as a folder that may be shared and proves its privacy statement.

A format is a function that writes the images into the folder, and a line in `FORMATS`.

Shape suffixes: N images, H height, W width, C channels.
"""

import csv
import hashlib
import io
import re
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import category, normalize

import numpy as np

from privacy.durable import new_folder, refuse_occupied
from privacy.errors import IntegrityBroken, InvalidRequest
from privacy.records import LabelledRecords
from synth.data.manifest import DATA, Manifest, ShardEntry, file_entry, load_manifest, shard_entry
from synth.data.manifest import verify as verify_release
from synth.data.shards import encode_png, read_shards
from synth.export.documents import CARD, PRIVACY, CardFacts, checked_statement, render_card
from synth.storage import StoragePath, json_bytes

_SPLIT = "train"
_LABELS = "labels.csv"
_NPZ = f"{DATA}/{_SPLIT}.npz"
# In bytes: most file systems end at 255, and some that encrypt at 143.
_LONGEST_NAME = 128
# What Windows refuses in a name, what is a pattern to readers that glob, and what ends a Markdown
# code span.
_REFUSED = frozenset('<>:"/\\|?*[]{}`')
# Names of devices, which Windows opens in place of a file.
_DEVICE = re.compile(r"(con|prn|aux|nul|con(in|out)\$|(com|lpt)[0-9¹²³])( *\..*)?", re.IGNORECASE)
# How a formula begins, and what one needs that does more than arithmetic.
_FORMULA, _CALLS = "=+-@\t\r", "(!|'\":["


@dataclass(frozen=True)
class Format:
    """An export format."""

    #: Writes the data of a release (its folder, its manifest) into the folder of an export and
    #: returns the manifest of what was written.
    write: Callable[[StoragePath, Manifest, Path], Manifest]
    #: A Python program that opens the data, with FOLDER for the export; None where
    #: `datasets.load_dataset` opens the folder by its card alone.
    reading: str | None = None
    #: The images lie in one folder for each class.
    class_folders: bool = False


@dataclass(frozen=True)
class Exported:
    """A finished export: its folder, and the sha256 of its manifest, which covers all the rest."""

    folder: Path
    manifest_sha256: str


def export_dataset(
    form: str,
    release: StoragePath,
    target: Path,
    card: CardFacts,
    privacy: Mapping[str, Any],
    *,
    allow_void: bool = False,
) -> Exported:
    """Export the data set in `release` to the new folder `target`: data, card, manifest, statement.

    Args:
        form: a name in `FORMATS`.
        release: a folder with `manifest.json` and its shards.
        target: absent or an empty folder; after an error it is as it was.
        card: what the data set card says beside numbers.
        privacy: the privacy statement; see `synth.export.documents`.
        allow_void: export even a data set without a privacy guarantee.

    Raises:
        IntegrityBroken: the release is not what its manifest says.
        InvalidRequest: an unknown format, a target with content, an incomplete statement, or a void
            one without `allow_void`.
        UmbraError: the disk is full or not writable.
    """
    require_format(form)
    refuse_occupied(target)
    statement = checked_statement(privacy, allow_void)
    if findings := verify_release(release):
        raise IntegrityBroken(
            f"{release} is not what its manifest says, so it was not exported: "
            + "; ".join(findings[:5])
        )
    chosen, source = FORMATS[form], load_manifest(release)
    folders = class_folders(source.class_names) if chosen.class_folders else None
    with new_folder(target) as folder:
        manifest = chosen.write(release, source, folder)
        text = render_card(card, manifest, statement, folders, chosen.reading)
        (folder / CARD).write_text(text, encoding="utf-8")
        # The manifest holds the hash of every other file, and the statement that of the manifest.
        documents = (*manifest.documents, file_entry(folder, CARD))
        digest = replace(manifest, documents=documents).write(folder)
        (folder / PRIVACY).write_bytes(json_bytes({**statement, "manifest_sha256": digest}))
    return Exported(target, digest)


def require_format(form: str) -> None:
    """Raise InvalidRequest unless `form` is the name of an export format."""
    if form not in FORMATS:
        raise InvalidRequest(
            f"export format: one of {', '.join(FORMATS)} was expected, found {form!r}"
        )


def write_parquet(release: StoragePath, manifest: Manifest, folder: Path) -> Manifest:
    """Copy the release's shards, byte for byte: `data/*.parquet`, a Hugging Face data set."""
    for shard in manifest.shards:
        copy = folder / shard.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        with (release / shard.file).open("rb") as source, copy.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        # Hash the copy and not the source: the export is what was written.
        if hashlib.sha256(copy.read_bytes()).hexdigest() != shard.sha256:
            raise IntegrityBroken(f"{shard.file} changed while it was copied: nothing was exported")
    return manifest


def write_images(release: StoragePath, manifest: Manifest, folder: Path) -> Manifest:
    """Write `train/<class>/<row>.png` and the labels to `labels.csv`."""
    names = class_folders(manifest.class_names)
    for name, count in zip(names, manifest.class_counts, strict=True):
        # Torchvision's ImageFolder refuses a class without images.
        if count:
            (folder / _SPLIT / name).mkdir(parents=True)
    entries: list[ShardEntry] = []
    rows: list[list[object]] = []
    for shard in read_shards(release):
        for image, label in zip(shard.values, shard.labels.tolist(), strict=True):
            file = f"{_SPLIT}/{names[label]}/{len(entries):08d}.png"
            data = encode_png(image)
            (folder / file).write_bytes(data)
            entries.append(ShardEntry(file, len(data), hashlib.sha256(data).hexdigest(), rows=1))
            rows.append([file, label, _csv_text(manifest.class_names[label])])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["file", "label", "class"], *rows])
    (folder / _LABELS).write_text(text.getvalue(), encoding="utf-8")
    return replace(manifest, shards=tuple(entries), documents=(file_entry(folder, _LABELS),))


def write_webdataset(release: StoragePath, manifest: Manifest, folder: Path) -> Manifest:
    """Write `data/*.tar`, one for each shard, with `<row>.png` beside `<row>.cls`.

    Members that share a name up to the first dot are one sample (Aizman, Maltby, Breuel 2019).
    """
    (folder / DATA).mkdir()
    entries: list[ShardEntry] = []
    row = 0
    for shard, made in zip(manifest.shards, read_shards(release), strict=True):
        file = str(PurePosixPath(shard.file).with_suffix(".tar"))
        with tarfile.open(folder / file, "w", format=tarfile.USTAR_FORMAT) as tar:
            for image, label in zip(made.values, made.labels.tolist(), strict=True):
                _add_member(tar, f"{row:08d}.png", encode_png(image))
                _add_member(tar, f"{row:08d}.cls", str(label).encode())
                row += 1
        entries.append(shard_entry(folder, file))
    return replace(manifest, shards=tuple(entries))


def write_npz(release: StoragePath, manifest: Manifest, folder: Path) -> Manifest:
    """Write `data/train.npz` with `images` uint8 [N,H,W,C] and `labels` int64 [N]."""
    made = LabelledRecords.concatenate(read_shards(release))
    (folder / DATA).mkdir()
    np.savez_compressed(folder / _NPZ, images=made.values, labels=made.labels)
    return replace(manifest, shards=(shard_entry(folder, _NPZ),))


def class_folders(class_names: Sequence[str]) -> list[str]:
    """Return a folder name for each class: its own where every file system and reader takes it.

    What some refuse is replaced by _. Where two classes would share a folder (also on systems that
    ignore case or spell Unicode in their own way) all get their label.

    >>> class_folders(["T-shirt/top", "08", "__background__"]), class_folders(["a", "A"])
    (['T-shirt_top', '08', '_background__'], ['a_0', 'A_1'])
    """
    names = [_folder_name(name) for name in class_names]
    if len({normalize("NFKD", name).casefold() for name in names}) == len(names):
        return names
    return [_folder_name(name, f"_{label}") for label, name in enumerate(class_names)]


def _folder_name(class_name: str, ending: str = "") -> str:
    kept = "".join(letter if _is_kept(letter) else "_" for letter in class_name)
    cut = kept.encode()[:_LONGEST_NAME].decode(errors="ignore")
    # Windows drops dots and spaces at the end; names that begin with a dot are hidden, and those
    # that begin with two underscores are passed over by `datasets`.
    name = re.sub(r"^__+", "_", (cut.strip(" .") or "_") + ending)
    return f"_{name}" if _DEVICE.fullmatch(name) else name


def _is_kept(letter: str) -> bool:
    # Letters, marks, digits, punctuation and symbols, and what joins letters of Indic scripts.
    known = category(letter)[0] in "LMNPS" or letter in " \u200c\u200d"
    return known and letter not in _REFUSED


def _csv_text(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula that calls or reads something."""
    return f"'{text}" if text[:1] in _FORMULA and set(text) & set(_CALLS) else text


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # A new member has time 0 and no owner: equal releases give equal files.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


_READ_WEBDATASET = f"""\
from datasets import load_dataset

samples = load_dataset(
    "webdataset", data_files="FOLDER/{DATA}/*.tar", split="train"
)  # columns png and cls; or webdataset.WebDataset over the same files"""
_READ_NPZ = f"""\
import numpy as np

with np.load("FOLDER/{_NPZ}") as data:
    images, labels = data["images"], data["labels"]  # uint8 [N, H, W, C], int64 [N]"""

FORMATS = {
    "parquet": Format(write_parquet),
    "images": Format(write_images, class_folders=True),
    "webdataset": Format(write_webdataset, _READ_WEBDATASET),
    "npz": Format(write_npz, _READ_NPZ),
}
