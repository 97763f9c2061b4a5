"""`umbra audit`: recompute, verify, explain."""

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option, printable, table
from pipeline.home import Home
from privacy.errors import IntegrityBroken


@click.command()
@click.argument("subject", metavar="[RUN|EXPORT]", required=False)
@json_option
def audit(subject: str | None, as_json: bool) -> int:
    """Audit the ledger, a RUN, or an EXPORT folder; exit code 4 if anything is broken.

    Every ε is computed again from the raw rows by code that admitted nothing.
    """
    from pipeline.auditing import audit as perform

    found = perform(Home.locate(), subject)
    ledger = found.ledger

    def show(console: Console) -> None:
        verdict = "passed" if found.ok else "FAILED"
        subject = printable(found.subject)
        console.print(f"Audit of {subject}: {verdict}. {ledger.rows} rows replayed.")
        columns = ["data set", "ε declared", "δ", "RDP", "PLD", "PRV", "RDP with reserved"]
        rows = [
            (d.name, d.epsilon, d.delta, d.spent.rdp, d.spent.pld, d.spent.prv, d.committed.rdp)
            for d in ledger.datasets
        ]
        if rows:
            console.print(table("ε spent, recomputed", columns, rows, range(1, 7)))
        for sentence in (*found.files, *map(str, ledger.findings)):
            console.print(f"BROKEN: {printable(sentence)}")
        for note in ledger.notes:
            console.print(f"Note: {printable(note)}")

    emit(found.to_dict(), as_json, show)
    return 0 if found.ok else IntegrityBroken.exit_code
