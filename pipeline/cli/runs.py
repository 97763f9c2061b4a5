"""`umbra runs`: all runs of this home."""

from typing import Any

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option, printable, table
from pipeline.home import Home
from pipeline.runs.directory import RunDirectory
from pipeline.runs.status import JobClient, run_status
from privacy.errors import IntegrityBroken

_TO_EXPLAIN = ("interrupted", "silent")  # what no state of the run itself tells


@click.command()
@json_option
def runs(as_json: bool) -> None:
    """List the runs, oldest first."""
    ask = JobClient()
    found = [_row(run, ask) for run in Home.locate().runs()]

    def show(console: Console) -> None:
        if not found:
            console.print("No runs yet. Begin with `umbra submit SPEC`.")
            return
        rows = [(row["run_id"], row["status"], row["stage"], row["created"]) for row in found]
        console.print(table("", ["run", "status", "stage", "created"], rows))
        for row in found:
            if row["status"] in _TO_EXPLAIN:
                console.print(f"{row['run_id']}: {printable(row['reason'])}")

    emit(found, as_json, show)


def _row(run: RunDirectory, ask: JobClient) -> dict[str, Any]:
    try:
        state, now = run.state(), run_status(run, ask)
    except IntegrityBroken:
        # One damaged run must not hide the others; `umbra status` says what is wrong with it.
        nothing = dict.fromkeys(("reason", "stage", "created"), "")
        return {"run_id": run.run_id, "status": "damaged", **nothing}
    return {
        "run_id": run.run_id,
        "status": now.status,
        "reason": now.reason,
        "stage": state.stage or "",
        "created": f"{state.created:%Y-%m-%d %H:%M}",
    }
