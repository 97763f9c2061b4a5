"""`umbra cancel`: stop a run."""

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option
from pipeline.home import Home


@click.command()
@click.argument("run_id", metavar="RUN")
@json_option
def cancel(run_id: str, as_json: bool) -> None:
    """Stop the process that works on RUN. What was charged stays charged."""
    from pipeline.engine import cancel as stop

    run = Home.locate().run(run_id)
    stopped = stop(run)

    def show(console: Console) -> None:
        console.print(f"{run.run_id}: {'told to stop' if stopped else 'nothing was running'}")

    emit({"run_id": run.run_id, "stopped": stopped}, as_json, show)
