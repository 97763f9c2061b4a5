"""`umbra runs`, `status`, `logs`, `cancel`, `export` and `report`: look at runs, stop, share."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.output import emit, ignore_closed_pipe, json_option, pairs, printable, table
from pipeline.home import Home
from pipeline.progress import duration
from pipeline.runs import control
from pipeline.runs.control import run_status
from pipeline.runs.directory import RunDirectory, RunState
from privacy.errors import IntegrityBroken, InvalidRequest, UmbraError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.runs.ledger_access import TrainingSteps

_UNEXPLAINED = ("interrupted", "silent")  # the run's own state does not say why
_RESUME_OR_GIVE_UP = (
    "go on with `umbra resume {run}`, or give what was never charged back with "
    "`umbra cancel --give-up {run}`"
)
_ADVICE = {
    "created": "its budget is reserved; start it with `umbra resume {run}`",
    "queued": "it starts by itself; stop it with `umbra cancel {run}`",
    "interrupted": f"its process died; {_RESUME_OR_GIVE_UP}",
    "silent": f"if it is gone for good, {_RESUME_OR_GIVE_UP}; only the newest start can charge",
    "failed": "go on with `umbra resume {run}` when the cause is fixed",
    "cancelled": "go on with `umbra resume {run}`",
    "running": "follow it with `umbra logs {run}`, stop it with `umbra cancel {run}`",
    "done": "take the images with `umbra export {run} DIR`",
}
_GIVEN_UP = "it cannot be resumed: submit its spec as a new run"
_LOG_SECONDS = 0.5
_JOB_SECONDS = 2.0  # asking a cluster costs more than looking at a file
_STOP_SECONDS, _STOP_POLL = 60.0, 0.2


@click.command()
@json_option
def runs(as_json: bool) -> None:
    """List the runs, oldest first."""
    client = control.JobClient()
    rows = [_row(run, client) for run in Home.locate().runs()]

    def show(console: "Console") -> None:
        if not rows:
            console.print("No runs yet. Begin with `umbra submit SPEC`.")
            return
        cells = [(row["run_id"], row["status"], row["stage"], row["created"]) for row in rows]
        console.print(table("", ["run", "status", "stage", "created"], cells))
        for row in rows:
            if row["status"] in _UNEXPLAINED:
                console.print(f"{row['run_id']}: {printable(row['reason'])}")

    emit(rows, as_json, show)


def _row(run: RunDirectory, client: control.JobClient) -> dict[str, Any]:
    try:
        state, now = run.state(), run_status(run, client)
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


@click.command()
@click.argument("run_id", metavar="RUN")
@json_option
def status(run_id: str, as_json: bool) -> None:
    """Show the status of RUN, the reason for it, and what can be done."""
    run = Home.locate().run(run_id)
    now = run_status(run)
    state = run.state()
    where, steps = _who_works(state), _steps(run)
    advice = _GIVEN_UP if state.is_given_up else _ADVICE[now.status].format(run=run.run_id)
    reason = printable(now.reason or state.message)
    done = ", ".join(f"{stage.name} ({duration(stage.seconds)})" for stage in state.stages)
    rows = {
        "stages done": done or "none",
        "stage": state.stage,
        "attempts": state.attempt,
        "steps": steps and str(steps),
        "where": where,
        "note" if now.status == "done" else "reason": reason,
        "next": advice,
        "folder": str(run.path),
    }
    given = {name: value for name, value in rows.items() if value not in {None, ""}}
    facts = {**state.model_dump(mode="json"), "status": now.status, "reason": now.reason}
    facts |= {"where": where, "advice": advice, "steps": steps and asdict(steps)}
    title = f"{run.run_id}: {now.status}"
    emit(facts, as_json, lambda console: console.print(pairs(title, given)))


def _steps(run: RunDirectory) -> "TrainingSteps | None":
    """Return how far the training has come; None where it reserved nothing, or no ledger tells."""
    from pipeline.runs.ledger_access import read_budget, training_steps

    with suppress(UmbraError):
        return training_steps(run, read_budget(Home.locate()))
    return None


def _who_works(state: RunState) -> str:
    """Return the job and the process that work on the run, or are to, as text."""
    who = [str(state.job)] if state.job and state.status in {"created", "running"} else []
    if state.process:
        host = f" on {state.process.host}" if state.process.host else ""
        who.append(f"process {state.process.pid}{host}")
    return ", ".join(who)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run ends.")
@json_option
def logs(run_id: str, follow: bool, as_json: bool) -> None:
    """Print the log of RUN: stages and counts. With --json one object a line."""
    run = Home.locate().run(run_id)
    with ignore_closed_pipe():
        for line in _log_lines(run, follow):
            text = printable(line)
            click.echo(json.dumps({"line": text}, ensure_ascii=False) if as_json else text)


def _log_lines(run: RunDirectory, follow: bool) -> Iterator[str]:
    """Yield whole lines; the last one may lack its end, or say why the run never wrote any."""
    read, unfinished = 0, ""
    pause = _JOB_SECONDS if follow and run.state().job else _LOG_SECONDS
    while True:
        # Check before reading: what a run writes just before it ends is not lost.
        ended = not (follow and run_status(run).is_active)
        if run.log_path.exists():
            with run.log_path.open("rb") as log:
                log.seek(read)
                new = log.read()
            # Bytes up to a line's end, so that no character is cut in two.
            whole = new[: new.rfind(b"\n") + 1]
            read += len(whole)
            unfinished = new[len(whole) :].decode(errors="replace")
            yield from whole.decode(errors="replace").splitlines()
        if ended:
            if unfinished:
                yield unfinished
            if not read and not unfinished and (now := run_status(run)).reason:
                yield f"{run.run_id} is {now.status}: {now.reason}"
            return
        time.sleep(pause)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option(
    "--give-up",
    is_flag=True,
    help="Give what was never charged back to the budget; RUN cannot be trained further.",
)
@json_option
def cancel(run_id: str, give_up: bool, as_json: bool) -> None:
    """Stop the process or the Ray job that works on RUN. What was charged stays charged."""
    home = Home.locate()
    run = home.run(run_id)
    stopped = control.cancel(run)
    refunded: dict[str, int] = {}
    if give_up:
        # The process that was asked to stop still holds the run's lock for a moment.
        deadline = time.monotonic() + _STOP_SECONDS
        while run_status(run).is_active and time.monotonic() < deadline:
            time.sleep(_STOP_POLL)
        refunded = control.give_up(run, home).refunded

    def show(console: "Console") -> None:
        console.print(f"{run.run_id}: {'asked to stop' if stopped else 'nothing was running'}")
        for component, steps in refunded.items():
            console.print(f"given back: {steps} steps of {component}")

    emit({"run_id": run.run_id, "stopped": stopped, "refunded": refunded}, as_json, show)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    default="parquet",
    show_default=True,
    metavar="NAME",
    help="parquet (for Hugging Face and pyarrow), images (a folder of PNG for each class), "
    "webdataset (tar files) or npz (arrays).",
)
@click.option(
    "--allow-void", is_flag=True, help="Export a seeded run too, which guarantees no privacy."
)
@json_option
def export(run_id: str, folder: Path, form: str, allow_void: bool, as_json: bool) -> None:
    """Export the images of RUN to the new folder DIR, with a card and privacy.json."""
    from pipeline.runs.export import export_run
    from pipeline.runs.ledger_access import open_budget

    home = Home.locate()
    run = home.run(run_id)
    exported = export_run(run, open_budget(home), folder, form, allow_void=allow_void)

    def show(console: "Console") -> None:
        console.print(f"exported to {exported.folder}")
        console.print(f"manifest sha256 {exported.manifest_sha256}, recorded in the ledger")

    facts = {"folder": str(exported.folder), "manifest_sha256": exported.manifest_sha256}
    emit(facts, as_json, show)


@click.command()
@click.argument("run_id", metavar="RUN")
@json_option
def report(run_id: str, as_json: bool) -> None:
    """Write the report of RUN again, with the budget and the audit as they are now."""
    from pipeline.report.page import PAGE, write_report
    from pipeline.runs.ledger_access import open_budget

    home = Home.locate()
    run = home.run(run_id)
    if not run.state().is_done("synthesize"):
        raise InvalidRequest(f"run {run.run_id} has no images yet: there is nothing to report on")
    write_report(run, open_budget(home))
    path = str(run.release / PAGE)
    emit({"report": path}, as_json, lambda console: console.print(path))
