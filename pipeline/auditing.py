"""`umbra audit`: the ledger, a run, or an export from anywhere, held against the ledger."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.home import Home
from pipeline.run_directory import RunDirectory
from privacy.audit import LedgerAudit, audit_ledger
from privacy.errors import IntegrityBroken, InvalidRequest
from privacy.ledger import Finding, Head, Ledger
from synth.checkpoint import newest
from synth.export import verify_export
from synth.export.verification import read_promise
from synth.manifest import MANIFEST, manifest_sha256, verify


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
        subject: a run id, a folder made by `umbra export`, or None for the ledger with the heads
            that all runs recorded.

    Raises:
        InvalidRequest: there is no such run or folder.
        LedgerUnavailable: the ledger cannot be read.
    """
    ledger = Ledger.open(home.ledger_url)
    if subject is None:
        heads = [head for run in home.runs() for head in _recorded_heads(run)]
        return Audit("the ledger", audit_ledger(ledger, heads), ())
    if Path(subject).is_dir():
        return _audit_export(ledger, Path(subject))
    return audit_run(ledger, home.run(subject))


def audit_run(ledger: Ledger, run: RunDirectory) -> Audit:
    """Audit one run: its reservation, the heads it recorded, and its released files."""
    state = run.state()
    files: list[str] = []
    try:
        run.spec()
    except IntegrityBroken as error:
        files.append(str(error))
    if (run.release / MANIFEST).exists():
        files += verify(run.release)
    elif state.is_done("synthesize"):
        files.append(f"missing: {run.release / MANIFEST}")
    reserved = state.reservation_id
    checked = audit_ledger(ledger, _recorded_heads(run), reservation_id=reserved)
    if reserved is None:
        files.append(f"run {run.run_id} never reserved a budget: it can have made nothing private")
    return Audit(f"run {run.run_id}", checked, tuple(files))


def _audit_export(ledger: Ledger, folder: Path) -> Audit:
    """Audit an export: its own seals, and that the ledger recorded exactly this manifest."""
    files = verify_export(folder)
    try:
        said = read_promise(folder)
        digest = manifest_sha256(folder)
    except IntegrityBroken as error:
        findings = (*files, str(error))
        return Audit(f"export {folder.name}", audit_ledger(ledger), tuple(dict.fromkeys(findings)))
    if said["ledger_id"] != ledger.ledger_id:
        raise InvalidRequest(
            f"{folder} was exported under ledger {said['ledger_id']}, this is {ledger.ledger_id}: "
            "set UMBRA_HOME or UMBRA_LEDGER_URL to the one it came from."
        )
    try:
        checked = audit_ledger(
            ledger, [Head.parse(said["head_hash"])], reservation_id=said["reservation"]
        )
    except InvalidRequest as error:
        return Audit(f"export {folder.name}", audit_ledger(ledger), (*files, str(error)))
    if not any(digest in reservation.exports for reservation in checked.reservations):
        files.append("the ledger records no export of this manifest under the stated reservation")
    return Audit(f"export {folder.name}", checked, (*files, *_overstated(said, checked)))


def _overstated(said: dict[str, Any], checked: LedgerAudit) -> list[str]:
    """Return a sentence where `privacy.json` states less than the ledger charged."""
    findings = []
    for reservation in checked.reservations:
        charged = {m["component"]: m["steps"] for m in said["mechanisms"]}
        recorded = {name: steps for name, steps in reservation.charged.items() if steps}
        if charged != recorded:
            findings.append("privacy.json states other steps than the ledger charged")
        if bool(said["void"]) != reservation.void:
            findings.append("privacy.json and the ledger disagree on whether the run is void")
    return findings


def _recorded_heads(run: RunDirectory) -> list[Head]:
    """Return the ledger heads that a run wrote down outside the ledger."""
    found = newest(run.internal / "checkpoints").checkpoint
    return [Head.parse(found.ledger_head)] if found and found.ledger_head else []


__all__ = ["Audit", "Finding", "audit", "audit_run"]
