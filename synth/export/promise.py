"""What an export promises: the fields of `privacy.json`, and when they must not be written."""

import json
import math
from collections.abc import Mapping
from typing import Any

from privacy.errors import InvalidRequest

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
