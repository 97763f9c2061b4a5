"""`umbra cancel`: stop a run."""

import time

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option
from pipeline.home import Home
from pipeline.runs.directory import RunDirectory
from pipeline.runs.status import run_status

_SECONDS, _POLL = 60.0, 0.2


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
    from pipeline.runs import cancel as cancelling

    home = Home.locate()
    run = home.run(run_id)
    stopped = cancelling.cancel(run)
    refunded = _settle(run, home) if give_up else {}

    def show(console: Console) -> None:
        console.print(f"{run.run_id}: {'told to stop' if stopped else 'nothing was running'}")
        for component, steps in refunded.items():
            console.print(f"given back: {steps} steps of {component}")

    emit({"run_id": run.run_id, "stopped": stopped, "refunded": refunded}, as_json, show)


def _settle(run: RunDirectory, home: Home) -> dict[str, int]:
    """Give up a run, once the process that was told to stop has let go of it."""
    from pipeline.runs import cancel as cancelling

    deadline = time.monotonic() + _SECONDS
    while run_status(run).is_active and time.monotonic() < deadline:
        time.sleep(_POLL)
    return cancelling.give_up(run, home).refunded
