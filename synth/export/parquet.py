"""Export as Parquet: the release's shards, byte for byte, in a Hugging Face data set folder."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privacy.errors import IntegrityBroken
from synth.data.manifest import Manifest, ShardEntry
from synth.export.card import CardFacts
from synth.export.folder import Exported, build_export
from synth.storage import StoragePath


def export_parquet(
    release_dir: StoragePath,
    target: Path,
    card: CardFacts,
    privacy: Mapping[str, Any],
    *,
    allow_void: bool = False,
) -> Exported:
    """Export to `target/data/*.parquet`; see `synth.export.Exporter`."""

    def fill(folder: Path, manifest: Manifest) -> Manifest:
        for shard in manifest.shards:
            _copy(release_dir, folder, shard)
        return manifest

    return build_export(release_dir, target, fill, card, privacy=privacy, allow_void=allow_void)


def _copy(release_dir: StoragePath, folder: Path, shard: ShardEntry) -> None:
    """Copy one shard and hash the copy: what is promised is what arrived, not what was read."""
    copy = folder / shard.file
    copy.parent.mkdir(parents=True, exist_ok=True)
    with (release_dir / shard.file).open("rb") as source, copy.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    if hashlib.sha256(copy.read_bytes()).hexdigest() != shard.sha256:
        raise IntegrityBroken(f"{shard.file} changed while it was copied: nothing was exported")
