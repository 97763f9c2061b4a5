"""`umbra audit ledger`: the ledger, a run, or an export from anywhere, held against the ledger.

Every export is traced to its reservation's charges: that they came first and cover what it used is
a rule of the rows, that this very manifest was recorded is looked up here.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.home import Home
from pipeline.runs.directory import RunDirectory
from pipeline.runs.ledger_access import privacy_statement, recorded_heads, step_counts
from pipeline.runs.origin import foreign_artefacts
from privacy.accounting.tradeoff import meaning
from privacy.audit import LedgerAudit, audit_ledger
from privacy.budget import Budget
from privacy.errors import IntegrityBroken, InvalidRequest
from privacy.ledger import Head, Kind, Ledger
from synth.data.manifest import MANIFEST, manifest_sha256, verify
from synth.export.documents import PRIVACY, read_statement, verify_export

# Exports of older versions do not state what these are.
_STATED_LATER = {"spec", "weights"}
_EPSILON_TOLERANCE = 1e-3  # relative; versions of the accountants differ by less


def verify_privacy_statement(said: dict[str, Any], ledger: Ledger) -> list[str]:
    """Return a sentence for everything in `privacy.json` that does not follow from the rows."""
    try:
        due = privacy_statement(Budget(ledger), said["reservation"])
    except IntegrityBroken as error:
        return [str(error)]
    if due["void"]:
        due["epsilon"] = dict.fromkeys(due["epsilon"])
    compared = {"epsilon", "guarantees", "attack", "head_hash"}
    exact = due.keys() - compared - (_STATED_LATER - said.keys())
    findings = [
        f"{PRIVACY} does not state the {name.replace('_', ' ')} that the ledger's rows give"
        for name in sorted(exact)
        if said.get(name) != due[name]
    ]
    findings += [
        f"{PRIVACY} states {name!r}, which an export does not have"
        for name in sorted(said.keys() - due.keys() - {"manifest_sha256", "steps"})
    ]
    # Exports of older versions state no steps.
    if "steps" in said and not _steps_follow(said["steps"], Budget(ledger), said["reservation"]):
        findings.append(f"{PRIVACY} states other steps than the ledger's rows give")
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
    # Exports of older versions state none.
    unit = Budget(ledger).reservation(said["reservation"]).unit
    if "attack" in said and not _same_curves(said["attack"], due["attack"], unit):
        findings.append(f"{PRIVACY} states another power of attacks than the ledger's rows give")
    return findings


def _steps_follow(stated: Any, budget: Budget, reservation_id: str) -> bool:
    if not isinstance(stated, dict) or stated.keys() != {"planned", "charged", "trained"}:
        return False
    trained, counts = stated["trained"], step_counts(budget, reservation_id)
    # How many were trained, no row tells; more than were charged cannot be.
    possible = trained is None or (type(trained) is int and 0 <= trained <= counts[1])
    return possible and (stated["planned"], stated["charged"]) == counts


def _same_guarantees(stated: Any, due: list[dict[str, Any]]) -> bool:
    if not isinstance(stated, list) or len(stated) != len(due):
        return False
    return all(
        isinstance(one, dict)
        and isinstance(one.get("epsilon"), int | float)
        and one == other | {"epsilon": one["epsilon"]}
        and _agree(one["epsilon"], other["epsilon"])
        for one, other in zip(stated, due, strict=True)
    )


def _same_curves(stated: Any, due: list[dict[str, Any]], unit: str) -> bool:
    """Return whether numbers agree and the sentences are those of the numbers that are stated."""
    try:
        return len(stated) == len(due) and all(
            one.keys() == other.keys()
            and (one["records"], one["method"]) == (other["records"], other["method"])
            and one["power"].keys() == other["power"].keys()
            and all(_agree(one["power"][rate], other["power"][rate]) for rate in one["power"])
            and _agree(one["gdp_mu"], other["gdp_mu"])
            and one["meaning"] == meaning(one["power"], one["records"], unit)
            for one, other in zip(stated, due, strict=True)
        )
    except (AttributeError, TypeError, KeyError, ValueError):
        return False


def _agree(stated: float | None, due: float | None) -> bool:
    if stated is None or due is None:
        return stated is due
    return math.isclose(stated, due, rel_tol=_EPSILON_TOLERANCE)


@dataclass(frozen=True)
class Audit:
    """The ledger's audit and what was found wrong with files."""

    subject: str  # what was audited, as text
    ledger: LedgerAudit  # chain, rules and every ε again
    files: tuple[str, ...]  # a sentence for every file or hash that is not what it should be
    # The public key, in hex, that signs new rows; None where none does, or its row is damaged.
    signed_by: str | None

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return self.ledger.ok and not self.files

    @classmethod
    def of(
        cls, subject: str, checked: LedgerAudit, files: Iterable[str], ledger: Ledger
    ) -> "Audit":
        """Return the audit with the key by which the ledger is signed."""
        try:
            key = ledger.public_key
        except IntegrityBroken:
            key = None  # the ledger's own audit has found it
        return cls(subject, checked, tuple(files), key)

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain JSON values."""
        return {
            "subject": self.subject,
            "ok": self.ok,
            "files": list(self.files),
            "signed_by": self.signed_by,
            "ledger": self.ledger.to_record(),
        }


def audit(home: Home, subject: str | None = None, public_key: str | None = None) -> Audit:
    """Audit the whole ledger, or one run, or one export folder, with the ledger behind it.

    `subject` is a run's id or folder, a folder made by `umbra export`, or None for the ledger with
    the heads that all runs recorded; `public_key` the Ed25519 key that must have signed the rows,
    in hex or a file that holds it.

    Raises InvalidRequest where there is no such run or folder, or it belongs to another ledger,
    LedgerUnavailable where the ledger cannot be read, and IntegrityBroken where its first row or
    the run's state is damaged.
    """
    ledger = Ledger.open(home.ledger_url, witness=home.witness_path)
    key = None if public_key is None else _public_key(public_key)
    if subject is None:
        heads, damaged = _heads_of(home.runs())
        checked = audit_ledger(ledger, heads, public_key=key)
        return Audit.of("the ledger", checked, damaged, ledger)
    run = find_run(home, subject)
    return audit_run(ledger, run, key) if run else _audit_export(ledger, Path(subject), key)


def find_run(home: Home, subject: str) -> RunDirectory | None:
    """Return the run that has this id or folder; None for any other folder."""
    folder = Path(subject)
    if folder.is_dir():
        inside = folder.resolve().parent == home.runs_path.resolve()
        return RunDirectory(folder.resolve()) if inside else None
    if len(folder.parts) > 1:
        raise InvalidRequest(f"there is no folder {subject}: give an export's, or a run's id")
    return home.run(subject)


def audit_run(ledger: Ledger, run: RunDirectory, public_key: str | None = None) -> Audit:
    """Audit one run: its reservations, the heads it recorded, and its released files.

    Raises InvalidRequest where the run never reserved a budget and has made nothing.
    """
    state = run.state()
    made = state.is_done("synthesize") or (run.release / MANIFEST).exists()
    if state.reservation_id is None and not made:
        raise InvalidRequest(
            f"run {run.run_id} never reserved a budget and has made nothing: there is nothing to "
            "audit"
        )
    files = verify(run.release) if made else []
    heads, damaged = _heads_of([run])
    files += damaged
    if state.reservation_id is None:
        checked = audit_ledger(ledger, heads, public_key=public_key)
        files.append("images were made without any reservation")
    else:
        checked, missing = _narrowed(ledger, heads, public_key, run_id=run.run_id)
        files += missing
    files += _foreign(ledger, run)
    if state.reservation_id is not None and not files:
        files += foreign_artefacts(run, Budget(ledger))
    return Audit.of(f"run {run.run_id}", checked, files, ledger)


def _audit_export(ledger: Ledger, folder: Path, public_key: str | None) -> Audit:
    """Audit an export: its own seals, and that the ledger recorded exactly this manifest."""
    if not (folder / PRIVACY).exists() and not (folder / MANIFEST).exists():
        raise InvalidRequest(
            f"{folder} is not an export: it has neither {PRIVACY} nor {MANIFEST}. Give a folder "
            "made by `umbra export`, or a run's id."
        )
    subject, files = f"export {folder.resolve().name}", verify_export(folder)
    try:
        said, digest = read_statement(folder), manifest_sha256(folder)
        head = _head(said["head_hash"])
    except IntegrityBroken as error:
        checked = audit_ledger(ledger, public_key=public_key)
        return Audit.of(subject, checked, dict.fromkeys((*files, str(error))), ledger)
    if said["ledger_id"] != ledger.ledger_id:
        raise InvalidRequest(
            f"{folder} was exported under ledger {said['ledger_id']}, this is {ledger.ledger_id}: "
            "set UMBRA_HOME or UMBRA_LEDGER_URL to the one it came from."
        )
    checked, missing = _narrowed(ledger, [head], public_key, reservation_id=said["reservation"])
    files += missing
    if not missing:
        if not any(digest in reservation.exports for reservation in checked.reservations):
            files.append("the ledger records no export of this manifest under the reservation")
        files += verify_privacy_statement(said, ledger)
    return Audit.of(subject, checked, files, ledger)


def _narrowed(
    ledger: Ledger, heads: Iterable[Head], public_key: str | None, **of: str
) -> tuple[LedgerAudit, list[str]]:
    """Audit the ledger and report on one run or reservation; the sentences say it is not there."""
    try:
        return audit_ledger(ledger, heads, public_key=public_key, **of), []
    except InvalidRequest as error:
        # The key, too, may be what was not valid: then this raises once more.
        return audit_ledger(ledger, heads, public_key=public_key), [
            f"{error} Its rows were cut off, or this is not the ledger it was made under."
        ]


def _foreign(ledger: Ledger, run: RunDirectory) -> list[str]:
    """Return a sentence for every reservation of the run that was made for another run or spec."""
    findings = []
    try:
        run.spec()
    except IntegrityBroken as error:
        findings.append(str(error))
    state = run.state()
    for identity in filter(None, (state.reservation_id, state.holdout_reservation_id)):
        rows = list(ledger.rows(kind=Kind.RESERVE, reservation=identity))
        if not rows:
            findings.append(f"the ledger holds no reservation {identity}, which the run names")
        for row in rows:
            try:
                reserved = row.content
            except ValueError:
                continue  # the replay has found it
            if reserved.get("run") != run.run_id:
                findings.append(f"reservation {identity} was made for another run")
            if reserved.get("spec") not in (None, state.spec_sha256):
                findings.append("the budget was reserved for another spec than the run's")
    return findings


def _head(text: str) -> Head:
    try:
        return Head.parse(text)
    except InvalidRequest as error:
        raise IntegrityBroken(f"changed: {PRIVACY} names no head of a ledger") from error


def _heads_of(runs: Iterable[RunDirectory]) -> tuple[list[Head], list[str]]:
    """Return the heads that runs wrote down outside the ledger, and which records are damaged."""
    heads: list[Head] = []
    damaged: list[str] = []
    for run in runs:
        try:
            heads += recorded_heads(run)
        except IntegrityBroken as error:
            damaged.append(str(error))
    return heads, damaged


def _public_key(text: str) -> str:
    path = Path(text)
    return path.read_text(errors="replace").strip() if path.is_file() else text
