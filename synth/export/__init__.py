"""Exports: a synthetic data set as a folder that may be shared and proves what it promises.

A format is one file with an `Exporter` function and one line in `EXPORTERS`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from privacy.errors import InvalidRequest
from synth.export.card import CardFacts
from synth.export.folder import Exported
from synth.export.images import export_images
from synth.export.npz import export_npz
from synth.export.parquet import export_parquet
from synth.export.statement import verify_export
from synth.export.webdataset import export_webdataset
from synth.storage import StoragePath

__all__ = ["EXPORTERS", "CardFacts", "Exported", "Exporter", "exporter", "verify_export"]


class Exporter(Protocol):
    """What every format promises: whole or not at all, sound input, an honest `privacy.json`."""

    def __call__(
        self,
        release_dir: StoragePath,
        target: Path,
        card: CardFacts,
        privacy: Mapping[str, Any],
        *,
        allow_void: bool = False,
    ) -> Exported:
        """Export the data set in `release_dir` to the new folder `target`.

        Args:
            release_dir: a folder with `manifest.json` and its shards.
            target: absent or an empty folder.
            card: what the data set card says beside numbers.
            privacy: what is promised; see `synth.export.statement`.
            allow_void: export even what carries no privacy guarantee.

        Raises:
            IntegrityBroken: the input is not what its manifest says.
            InvalidRequest: the target is not empty, the promise is incomplete, or it is void and
                `allow_void` was not given.
            UmbraError: the disk is full.
        """
        ...


EXPORTERS: dict[str, Exporter] = {
    "parquet": export_parquet,
    "images": export_images,
    "webdataset": export_webdataset,
    "npz": export_npz,
}


def exporter(name: str) -> Exporter:
    """Return the exporter of a format, raising InvalidRequest for one that does not exist."""
    try:
        return EXPORTERS[name]
    except KeyError:
        raise InvalidRequest(
            f"export format: one of {', '.join(EXPORTERS)} was expected, found {name!r}"
        ) from None
