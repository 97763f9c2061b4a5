"""Export as NumPy arrays: `data/train.npz` with `images` and `labels`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from synth.data.manifest import DATA, Manifest, shard_entry
from synth.data.shards import read_shards
from synth.export.card import CardFacts
from synth.export.folder import Exported, build_export
from synth.storage import StoragePath

FILE = f"{DATA}/train.npz"
_READING = f"""\
import numpy as np

with np.load("FOLDER/{FILE}") as data:
    images, labels = data["images"], data["labels"]  # uint8 [N, H, W, C], int64 [N]"""


def export_npz(
    release_dir: StoragePath,
    target: Path,
    card: CardFacts,
    privacy: Mapping[str, Any],
    *,
    allow_void: bool = False,
) -> Exported:
    """Export to one compressed file, as `data.source: {kind: npz}` reads it; see `Exporter`."""

    def fill(folder: Path, manifest: Manifest) -> Manifest:
        images, labels = zip(*read_shards(release_dir), strict=True)
        (folder / DATA).mkdir()
        np.savez_compressed(
            folder / FILE, images=np.concatenate(images), labels=np.concatenate(labels)
        )
        return replace(manifest, shards=(shard_entry(folder, FILE),))

    return build_export(
        release_dir,
        target,
        fill,
        card,
        privacy=privacy,
        allow_void=allow_void,
        reading=_READING,
    )
