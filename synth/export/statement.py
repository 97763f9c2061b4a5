"""Checking an export that came from anywhere: every byte against its own seals."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privacy.errors import IntegrityBroken, InvalidRequest
from synth.data.manifest import MANIFEST, differences, load_manifest, manifest_sha256, unlisted
from synth.storage import json_bytes

PRIVACY = "privacy.json"

#: Field of `privacy.json` and the type of its value.
FIELDS: dict[str, type] = {
    "unit": str,  # what one unit of privacy is, for example "one image"
    "neighbouring_relation": str,  # for example "add/remove with zero-out"
    "delta": float,
    "epsilon": dict,  # by accountant, rounded up; null for a void run
    "mechanisms": list,  # raw parameters of everything charged, never only an epsilon
    "ledger_id": str,
    "head_hash": str,  # of the ledger's last row, so that truncation shows
    "reservation": str,
    "void": bool,  # true where a seed made the noise reproducible
}


def checked_promise(privacy: Mapping[str, Any], allow_void: bool) -> dict[str, Any]:
    """Return a copy of `privacy` that is complete, finite and JSON.

    Further fields are passed on as they are. A void promise loses its epsilons: a number under
    which nothing is promised would be quoted all the same.

    Raises:
        InvalidRequest: a field is missing or of a wrong type, a number is not finite, or the
            promise is void and `allow_void` was not given.
    """
    for name, kind in FIELDS.items():
        if name not in privacy:
            raise InvalidRequest(f"{PRIVACY} needs {name!r}")
        if not isinstance(privacy[name], kind):
            found = type(privacy[name]).__name__
            raise InvalidRequest(f"{PRIVACY}: {name!r} must be {kind.__name__}, found {found}")
    promise = dict(privacy)
    if promise["void"]:
        if not allow_void:
            raise InvalidRequest(
                "the run is void of privacy: a seed made its noise reproducible, so the images may "
                "give the private records away; run it without a seed, or allow a void export"
            )
        promise["epsilon"] = dict.fromkeys(promise["epsilon"])
    else:
        _check_guarantee(promise)
    try:
        json.dumps(promise, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{PRIVACY} must be JSON with finite numbers: {error}") from error
    return promise


def _check_guarantee(promise: Mapping[str, Any]) -> None:
    if not 0 < promise["delta"] < 1:
        raise InvalidRequest(f"{PRIVACY}: delta must lie between 0 and 1")
    epsilons = promise["epsilon"]
    if not epsilons or not promise["mechanisms"]:
        raise InvalidRequest(f"{PRIVACY} needs an epsilon and the mechanisms it follows from")
    for name, epsilon in epsilons.items():
        number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
        if not number or not (math.isfinite(epsilon) and epsilon >= 0):
            raise InvalidRequest(f"{PRIVACY}: epsilon by {name!r} must be a finite number >= 0")


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
