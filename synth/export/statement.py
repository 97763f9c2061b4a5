"""The privacy statement of an export, `privacy.json`, and the verification of an export by it.

`privacy.json` has the sha256 of `manifest.json`, which has that of every other file. The ledger has
recorded the sha256 of the manifest too: comparing the two is the ledger audit's task.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privacy.errors import IntegrityBroken, InvalidRequest
from synth.data.manifest import MANIFEST, differences, load_manifest, manifest_sha256, unlisted
from synth.storage import json_bytes

PRIVACY = "privacy.json"

#: Fields of `privacy.json` and the types of their values.
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


def checked_statement(privacy: Mapping[str, Any], allow_void: bool) -> dict[str, Any]:
    """Return a copy of the statement `privacy` if it is complete, finite and JSON.

    Unknown fields are kept; the epsilons of a void statement become None.

    Raises:
        InvalidRequest: a field is missing or of a wrong type, a number is not finite, or the
            statement is void and `allow_void` was not given.
    """
    for name, kind in FIELDS.items():
        if name not in privacy:
            raise InvalidRequest(f"{PRIVACY} needs {name!r}")
        if not isinstance(privacy[name], kind):
            found = type(privacy[name]).__name__
            raise InvalidRequest(f"{PRIVACY}: {name!r} must be {kind.__name__}, found {found}")
    statement = dict(privacy)
    if not statement["void"]:
        _check_guarantee(statement)
    elif not allow_void:
        raise InvalidRequest(
            "the run is void of privacy: a seed made its noise reproducible, so the images may "
            "give the private records away; run it without a seed, or allow a void export"
        )
    else:
        # A number that guarantees nothing would be quoted all the same.
        statement["epsilon"] = dict.fromkeys(statement["epsilon"])
    try:
        json.dumps(statement, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{PRIVACY} must be JSON with finite numbers: {error}") from error
    return statement


def read_statement(folder: Path) -> dict[str, Any]:
    """Return the privacy statement of the export in `folder`.

    Raises:
        IntegrityBroken: it is missing, not as it was written, or incomplete.
    """
    try:
        data = (folder / PRIVACY).read_bytes()
        statement = json.loads(data)
        canonical = json_bytes(statement) == data
        checked_statement(statement, allow_void=True)
    except FileNotFoundError:
        raise IntegrityBroken(f"missing: {PRIVACY}") from None
    except (ValueError, TypeError, AttributeError, InvalidRequest) as error:
        raise IntegrityBroken(f"changed: {PRIVACY} cannot be understood: {error}") from error
    if not canonical:
        raise IntegrityBroken(f"changed: {PRIVACY} is not as it was written")
    return dict(statement)


def verify_export(folder: Path) -> list[str]:
    """Recompute the hash of every file of the export in `folder`.

    Returns one sentence a finding: missing, extra or changed files, wrong numbers of rows, an
    incomplete statement; none if all is well.
    """
    findings = []
    try:
        if read_statement(folder).get("manifest_sha256") != manifest_sha256(folder):
            findings.append(f"changed: {MANIFEST} does not have the sha256 that {PRIVACY} states")
    except IntegrityBroken as error:
        findings.append(str(error))
    try:
        manifest = load_manifest(folder)
    except IntegrityBroken as error:
        return [*findings, str(error)]
    extra = unlisted(folder, folder, manifest, ignore=[PRIVACY])
    return [*findings, *differences(folder, manifest), *extra]


def _check_guarantee(statement: Mapping[str, Any]) -> None:
    if not 0 < statement["delta"] < 1:
        raise InvalidRequest(f"{PRIVACY}: delta must lie between 0 and 1")
    epsilons = statement["epsilon"]
    if not epsilons or not statement["mechanisms"]:
        raise InvalidRequest(f"{PRIVACY} needs an epsilon and the mechanisms it follows from")
    for name, epsilon in epsilons.items():
        number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
        if not number or not (math.isfinite(epsilon) and epsilon >= 0):
            raise InvalidRequest(f"{PRIVACY}: epsilon by {name!r} must be a finite number >= 0")
