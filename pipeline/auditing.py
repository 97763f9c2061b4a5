"""`umbra audit`: the ledger, a run, or an export from anywhere, held against the ledger."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.heads import recorded_heads
from pipeline.home import Home
from pipeline.promise import promise
from pipeline.run_directory import RunDirectory
from privacy.audit import LedgerAudit, audit_ledger
from privacy.budget import Budget
from privacy.errors import IntegrityBroken, InvalidRequest
from privacy.ledger import Head, Kind, Ledger
from synth.export import verify_export
from synth.export.promise import PRIVACY
from synth.export.verification import read_promise
from synth.manifest import MANIFEST, manifest_sha256, verify

_EPSILON_TOLERANCE = 1e-3  # relative; versions of the accountants differ by less


@dataclass(frozen=True)
class Audit:
    """The ledger's audit and what was found wrong with files.

    Attributes:
        subject: what was audited, in words.
        ledger: chain, rules and every ε again.
        files: one sentence for every file or hash that is not what it should be.
    """

    subject: str
    ledger: LedgerAudit
    files: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return self.ledger.ok and not self.files

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain JSON values."""
        return {
            "subject": self.subject,
            "ok": self.ok,
            "files": list(self.files),
            "ledger": self.ledger.to_record(),
        }


def audit(home: Home, subject: str | None = None) -> Audit:
    """Audit the whole ledger, or one run, or one export folder, with the ledger behind it.

    Args:
        home: where the ledger is.
        subject: a run id or a run's folder, a folder made by `umbra export`, or None for the
            ledger with the heads that all runs recorded.

    Raises:
        InvalidRequest: there is no such run or folder, or it belongs to another ledger.
        LedgerUnavailable: the ledger cannot be read.
        IntegrityBroken: the ledger's first row or the run's state is damaged.
    """
    ledger = Ledger.open(home.ledger_url)
    if subject is None:
        heads, damaged = _heads_of(home.runs())
        return Audit("the ledger", audit_ledger(ledger, heads), tuple(damaged))
    folder = Path(subject)
    if not folder.is_dir():
        if len(folder.parts) > 1:
            raise InvalidRequest(f"there is no folder {subject}: give an export's, or a run's id")
        return audit_run(ledger, home.run(subject))
    if folder.resolve().parent == home.runs_path.resolve():
        return audit_run(ledger, RunDirectory(folder.resolve()))
    return _audit_export(ledger, folder)


def audit_run(ledger: Ledger, run: RunDirectory) -> Audit:
    """Audit one run: its reservation, the heads it recorded, and its released files.

    Raises:
        InvalidRequest: the run never reserved a budget and has made nothing.
        IntegrityBroken: the run's state is damaged.
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
    checked, missing = _audit_reservation(ledger, heads, state.reservation_id)
    return Audit(f"run {run.run_id}", checked, (*files, *missing, *_foreign(ledger, run)))


def _audit_export(ledger: Ledger, folder: Path) -> Audit:
    """Audit an export: its own seals, and that the ledger recorded exactly this manifest."""
    if not (folder / PRIVACY).exists() and not (folder / MANIFEST).exists():
        raise InvalidRequest(
            f"{folder} is not an export: it has neither {PRIVACY} nor {MANIFEST}. Give a folder "
            "made by `umbra export`, or a run's id."
        )
    subject, files = f"export {folder.resolve().name}", verify_export(folder)
    try:
        said = read_promise(folder)
        digest = manifest_sha256(folder)
        head = _head(said["head_hash"])
    except IntegrityBroken as error:
        return Audit(subject, audit_ledger(ledger), tuple(dict.fromkeys((*files, str(error)))))
    if said["ledger_id"] != ledger.ledger_id:
        raise InvalidRequest(
            f"{folder} was exported under ledger {said['ledger_id']}, this is {ledger.ledger_id}: "
            "set UMBRA_HOME or UMBRA_LEDGER_URL to the one it came from."
        )
    checked, missing = _audit_reservation(ledger, [head], said["reservation"])
    files += missing
    if not missing:
        if not any(digest in reservation.exports for reservation in checked.reservations):
            files.append("the ledger records no export of this manifest under the reservation")
        files += _misstated(said, ledger)
    return Audit(subject, checked, tuple(files))


def _audit_reservation(
    ledger: Ledger, heads: Iterable[Head], reservation_id: str | None
) -> tuple[LedgerAudit, list[str]]:
    """Audit the ledger for one reservation; the sentences say that it is not there."""
    if reservation_id is None:
        return audit_ledger(ledger, heads), ["images were made without any reservation"]
    try:
        return audit_ledger(ledger, heads, reservation_id=reservation_id), []
    except InvalidRequest as error:
        return audit_ledger(ledger, heads), [
            f"{error} Its rows were cut off, or this is not the ledger it was made under."
        ]


def _foreign(ledger: Ledger, run: RunDirectory) -> list[str]:
    """Return a sentence where the run is not the one that its reservation was made for."""
    findings = []
    try:
        run.spec()
    except IntegrityBroken as error:
        findings.append(str(error))
    state = run.state()
    if state.reservation_id is None:
        return findings
    for row in ledger.rows(kind=Kind.RESERVE, reservation=state.reservation_id):
        try:
            reserved = row.content
        except ValueError:
            continue  # the replay has found it
        if reserved.get("run") != run.run_id:
            findings.append(f"reservation {state.reservation_id} was made for another run")
        if reserved.get("spec") not in (None, state.spec_sha256):
            findings.append("the budget was reserved for another spec than the run's")
    return findings


def _misstated(said: dict[str, Any], ledger: Ledger) -> list[str]:
    """Return a sentence for everything that `privacy.json` states and the rows do not give."""
    try:
        due = promise(Budget(ledger), said["reservation"])
    except IntegrityBroken as error:
        return [str(error)]
    if due["void"]:
        due["epsilon"] = dict.fromkeys(due["epsilon"])
    exact = due.keys() - {"epsilon", "head_hash"}
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
    return findings


def _agree(stated: float | None, due: float | None) -> bool:
    if stated is None or due is None:
        return stated is due
    return math.isclose(stated, due, rel_tol=_EPSILON_TOLERANCE)


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
