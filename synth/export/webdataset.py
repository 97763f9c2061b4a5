"""Export as WebDataset: tar files of `<row>.png` beside `<row>.cls`, shard by shard.

The format is its own paper's (Aizman, Maltby, Breuel 2019): members that share a name up to the
first dot are one sample.
"""

import io
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from synth.data.manifest import DATA, Manifest, ShardEntry, shard_entry
from synth.data.shards import encode_png, read_shards
from synth.export.card import CardFacts
from synth.export.folder import Exported, build_export
from synth.storage import StoragePath

_READING = f"""\
from datasets import load_dataset

samples = load_dataset(
    "webdataset", data_files="FOLDER/{DATA}/*.tar", split="train"
)  # columns png and cls; or webdataset.WebDataset over the same files"""


def export_webdataset(
    release_dir: StoragePath,
    target: Path,
    card: CardFacts,
    privacy: Mapping[str, Any],
    *,
    allow_void: bool = False,
) -> Exported:
    """Export to `target/data/*.tar`, one for each shard; see `synth.export.Exporter`."""

    def fill(folder: Path, manifest: Manifest) -> Manifest:
        (folder / DATA).mkdir()
        entries: list[ShardEntry] = []
        row = 0
        for shard, (images, labels) in zip(manifest.shards, read_shards(release_dir), strict=True):
            file = str(PurePosixPath(shard.file).with_suffix(".tar"))
            with tarfile.open(folder / file, "w", format=tarfile.USTAR_FORMAT) as tar:
                for image, label in zip(images, labels.tolist(), strict=True):
                    _add(tar, f"{row:08d}.png", encode_png(image))
                    _add(tar, f"{row:08d}.cls", str(label).encode())
                    row += 1
            entries.append(shard_entry(folder, file))
        return replace(manifest, shards=tuple(entries))

    return build_export(
        release_dir,
        target,
        fill,
        card,
        privacy=privacy,
        allow_void=allow_void,
        reading=_READING,
    )


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # A new member has time 0 and no owner: equal releases give equal files.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
