"""`umbra runs`: all runs of this home."""

from typing import Any

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option, table
from pipeline.home import Home
from pipeline.run_directory import RunDirectory
from pipeline.run_state import RunState
from privacy.errors import IntegrityBroken


@click.command()
@json_option
def runs(as_json: bool) -> None:
    """List the runs, oldest first."""
    found = [_row(run) for run in Home.locate().runs()]

    def show(console: Console) -> None:
        if not found:
            console.print("No runs yet. Begin with `umbra submit SPEC`.")
            return
        rows = [(row["run_id"], row["status"], row["stage"], row["created"]) for row in found]
        console.print(table("", ["run", "status", "stage", "created"], rows))

    emit(found, as_json, show)


def _row(run: RunDirectory) -> dict[str, Any]:
    try:
        state = run.state()
    except IntegrityBroken:
        # One damaged run must not hide the others; `umbra status` says what is wrong with it.
        return {"run_id": run.run_id, "status": "damaged", "stage": "", "created": ""}
    return {
        "run_id": run.run_id,
        "status": outward_status(state),
        "stage": state.stage or "",
        "created": f"{state.created:%Y-%m-%d %H:%M}",
    }


def outward_status(state: RunState) -> str:
    """Return the status as it is now: a run whose process died is no longer running."""
    if state.status == "running" and not state.is_live():
        return "interrupted"
    return state.status
