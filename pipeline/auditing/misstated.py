"""What an export's `privacy.json` states, held against what the ledger's rows give."""

import math
from typing import Any

from pipeline.promise import promise
from privacy.budget import Budget
from privacy.errors import IntegrityBroken
from privacy.ledger import Ledger
from synth.export.promise import PRIVACY

_EPSILON_TOLERANCE = 1e-3  # relative; versions of the accountants differ by less


def misstated(said: dict[str, Any], ledger: Ledger) -> list[str]:
    """Return a sentence for everything that `privacy.json` states and the rows do not give."""
    try:
        due = promise(Budget(ledger), said["reservation"])
    except IntegrityBroken as error:
        return [str(error)]
    if due["void"]:
        due["epsilon"] = dict.fromkeys(due["epsilon"])
    exact = due.keys() - {"epsilon", "guarantees", "head_hash"}
    findings = [
        f"{PRIVACY} does not state the {name.replace('_', ' ')} that the ledger's rows give"
        for name in sorted(exact)
        if said.get(name) != due[name]
    ]
    findings += [
        f"{PRIVACY} states {name!r}, which an export does not have"
        for name in sorted(said.keys() - due.keys() - {"manifest_sha256"})
    ]
    stated = said["epsilon"]
    if stated.keys() != due["epsilon"].keys():
        findings.append(f"{PRIVACY} states ε by other accountants than are computed")
    findings += [
        f"{PRIVACY} states ε = {stated[name]} by {name.upper()}, the ledger's rows give {epsilon}"
        for name, epsilon in due["epsilon"].items()
        if name in stated and not _agree(stated[name], epsilon)
    ]
    if not _same_guarantees(said.get("guarantees"), due["guarantees"]):
        findings.append(f"{PRIVACY} states other guarantees than the ledger's rows give")
    return findings


def _same_guarantees(stated: Any, due: list[dict[str, Any]]) -> bool:
    if not isinstance(stated, list) or len(stated) != len(due):
        return False
    exact = ("relation", "records", "delta")
    return all(
        isinstance(one, dict)
        and one.keys() == other.keys()
        and all(one[name] == other[name] for name in exact)
        and isinstance(one["epsilon"], int | float)
        and _agree(one["epsilon"], other["epsilon"])
        for one, other in zip(stated, due, strict=True)
    )


def _agree(stated: float | None, due: float | None) -> bool:
    if stated is None or due is None:
        return stated is due
    return math.isclose(stated, due, rel_tol=_EPSILON_TOLERANCE)
