"""Checking an export that came from anywhere: every byte against its own seals."""

import json
from pathlib import Path
from typing import Any

from privacy.errors import IntegrityBroken, InvalidRequest
from synth.atomic import json_bytes
from synth.export.promise import PRIVACY, checked_promise
from synth.manifest import MANIFEST, differences, load_manifest, manifest_sha256, unlisted


def verify_export(folder: Path) -> list[str]:
    """Recompute the hash of every file in an export.

    `privacy.json` seals `manifest.json`, which seals every other file. What seals `privacy.json`
    is the ledger, which recorded the hash of the manifest: that comparison is the ledger audit's.

    Returns one sentence a finding: missing, extra or changed files, wrong numbers of rows, an
    incomplete promise; none if all is well.
    """
    findings = _check_promise(folder)
    try:
        manifest = load_manifest(folder)
    except IntegrityBroken as error:
        return [*findings, str(error)]
    extra = unlisted(folder, folder, manifest, ignore=[PRIVACY])
    return [*findings, *differences(folder, manifest), *extra]


def read_promise(folder: Path) -> dict[str, Any]:
    """Read `privacy.json` of an export.

    Raises:
        IntegrityBroken: it is missing, not as it was written, or incomplete.
    """
    path = folder / PRIVACY
    try:
        data = path.read_bytes()
        promise = json.loads(data)
        canonical = json_bytes(promise) == data
        checked_promise(promise, allow_void=True)
    except FileNotFoundError:
        raise IntegrityBroken(f"missing: {PRIVACY}") from None
    except (ValueError, TypeError, AttributeError, InvalidRequest) as error:
        raise IntegrityBroken(f"changed: {PRIVACY} cannot be understood: {error}") from error
    if not canonical:
        raise IntegrityBroken(f"changed: {PRIVACY} is not as it was written")
    return dict(promise)


def _check_promise(folder: Path) -> list[str]:
    try:
        promise = read_promise(folder)
        digest = manifest_sha256(folder)
    except IntegrityBroken as error:
        return [str(error)]
    if promise.get("manifest_sha256") != digest:
        return [f"changed: {MANIFEST} does not have the sha256 that {PRIVACY} states"]
    return []
