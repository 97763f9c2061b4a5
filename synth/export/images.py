"""Export as images: `train/<class>/*.png`, with the labels in `labels.csv` as well."""

import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from synth.data.manifest import Manifest, ShardEntry, file_entry, load_manifest
from synth.data.shards import encode_png, read_shards
from synth.export.card import CardFacts
from synth.export.folder import Exported, build_export
from synth.storage import StoragePath

LABELS = "labels.csv"
_SPLIT = "train"


def export_images(
    release_dir: StoragePath,
    target: Path,
    card: CardFacts,
    privacy: Mapping[str, Any],
    *,
    allow_void: bool = False,
) -> Exported:
    """Export to `target/train/<class>/<row>.png`; see `synth.export.Exporter`."""

    names = class_folders(load_manifest(release_dir).class_names)

    def fill(folder: Path, manifest: Manifest) -> Manifest:
        for name in names:
            (folder / _SPLIT / name).mkdir(parents=True)
        labels: list[int] = []
        entries: list[ShardEntry] = []
        for images, shard_labels in read_shards(release_dir):
            for image, label in zip(images, shard_labels.tolist(), strict=True):
                file = f"{_SPLIT}/{names[label]}/{len(entries):08d}.png"
                entries.append(_write_image(folder, file, image))
                labels.append(label)
        _write_labels(folder / LABELS, entries, labels, manifest.class_names)
        documents = (file_entry(folder, LABELS),)
        return replace(manifest, shards=tuple(entries), documents=documents)

    return build_export(
        release_dir,
        target,
        fill,
        card,
        privacy=privacy,
        allow_void=allow_void,
        class_folders=names,
    )


def class_folders(class_names: Sequence[str]) -> list[str]:
    """Return a folder name for each class: its own, with what file systems refuse replaced by _.

    Where two classes would share a folder (also on systems that ignore case) all get their label.
    """
    names = [re.sub(r"[^\w .+-]", "_", name).strip(" .") or "_" for name in class_names]
    if len({name.casefold() for name in names}) == len(names):
        return names
    return [f"{name}_{label}" for label, name in enumerate(names)]


def _write_image(folder: Path, file: str, image: np.ndarray) -> ShardEntry:
    data = encode_png(image)
    (folder / file).write_bytes(data)
    return ShardEntry(file, len(data), hashlib.sha256(data).hexdigest(), rows=1)


def _write_labels(
    path: Path, entries: Sequence[ShardEntry], labels: Sequence[int], class_names: Sequence[str]
) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "label", "class"])
    for entry, label in zip(entries, labels, strict=True):
        table.writerow([entry.file, label, class_names[label]])
    path.write_text(text.getvalue(), encoding="utf-8")
