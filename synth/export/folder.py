"""The folder of an export: what all formats have in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from privacy.durable import new_folder, refuse_occupied
from privacy.errors import IntegrityBroken
from synth.data.manifest import Manifest, file_entry, load_manifest, verify
from synth.export.card import CARD, CardFacts, render_card
from synth.export.statement import PRIVACY, checked_promise
from synth.storage import StoragePath, json_bytes

#: Fills the folder with the data and returns its manifest, given that of the release.
Fill = Callable[[Path, Manifest], Manifest]


@dataclass(frozen=True)
class Exported:
    """A finished export: where it is, and the sha256 of its manifest, which seals all the rest."""

    folder: Path
    manifest_sha256: str


def build_export(
    release_dir: StoragePath,
    target: Path,
    fill: Fill,
    card: CardFacts,
    *,
    privacy: Mapping[str, Any],
    allow_void: bool,
    class_folders: Sequence[str] | None = None,
    reading: str | None = None,
) -> Exported:
    """Make an export folder: data, card, manifest and, last, the `privacy.json` that seals it.

    `manifest.json` holds the hash of every file but itself and `privacy.json`; the latter holds
    the hash of the manifest. `class_folders` and `reading` are for `render_card`; what is promised
    and raised is said in `synth.export.Exporter`.
    """
    refuse_occupied(target)
    promise = checked_promise(privacy, allow_void)
    findings = verify(release_dir)
    if findings:
        raise IntegrityBroken(
            f"{release_dir} is not what its manifest says, so it was not exported: "
            + "; ".join(findings[:5])
        )
    with new_folder(target) as folder:
        manifest = fill(folder, load_manifest(release_dir))
        (folder / CARD).write_text(
            render_card(card, manifest, promise, class_folders, reading), encoding="utf-8"
        )
        documents = (*manifest.documents, file_entry(folder, CARD))
        digest = replace(manifest, documents=documents).write(folder)
        (folder / PRIVACY).write_bytes(json_bytes({**promise, "manifest_sha256": digest}))
    return Exported(target, digest)
