"""Heads of the ledger that a run recorded outside it, which reveal rows that were cut off later."""

from pipeline.runs.directory import RunDirectory
from privacy.durable import append_line
from privacy.errors import IntegrityBroken, InvalidRequest, UmbraError
from privacy.ledger import Head, Ledger

_HEADS = "ledger-heads"


def record_head(run: RunDirectory, head: Head) -> None:
    """Write a head down in the run's folder, durably and after all earlier ones.

    Raises:
        UmbraError: the folder cannot be written.
    """
    path = run.internal / _HEADS
    try:
        append_line(path, str(head))
    except OSError as error:
        raise UmbraError(f"cannot write {path}: {error.strerror}") from error


def recorded_heads(run: RunDirectory) -> list[Head]:
    """Return every head that the run recorded, its newest checkpoint's included.

    Raises:
        IntegrityBroken: the record of the heads is damaged.
    """
    from synth.checkpoint import newest  # loads torch

    path = run.internal / _HEADS
    try:
        lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
        heads = [Head.parse(line) for line in lines]
    except (OSError, UnicodeDecodeError, InvalidRequest) as error:
        raise IntegrityBroken(
            f"{path} is damaged: lines SEQ:HASH were expected, as the ledger's heads are written"
        ) from error
    found = newest(run.checkpoints).checkpoint
    return [*heads, Head.parse(found.ledger_head)] if found and found.ledger_head else heads


def verify_ledger_ancestry(run: RunDirectory, ledger: Ledger) -> None:
    """Refuse to go on where the ledger no longer holds a row that this run has seen.

    An older copy put in the ledger's place would not know what was charged since, and the same
    budget would be spent a second time.

    Raises:
        IntegrityBroken: a row is gone or was replaced, or the record is damaged.
        LedgerUnavailable: the ledger cannot be reached.
    """
    with ledger.reading() as view:
        for head in recorded_heads(run):
            row = view.row(head.seq)
            if row is None or row.hash != head.hash:
                raise IntegrityBroken(
                    f"the ledger at {ledger.where} no longer holds row {head.seq} as run "
                    f"{run.run_id} saw it: it was rolled back or replaced. Put the newest copy "
                    "back, then run `umbra audit`."
                )
