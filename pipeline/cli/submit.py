"""`umbra submit`: run a spec under its data set's budget."""

from pathlib import Path

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option
from pipeline.cli.running import run_detached, run_here
from pipeline.home import Home

address_option = click.option(
    "--address",
    envvar="RAY_ADDRESS",
    help="Ray cluster to run on; without it one is started inside this process.",
)


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@address_option
@click.option("--detach", is_flag=True, help="Print the run's id and go on in the background.")
@json_option
def submit(spec: Path, address: str | None, detach: bool, as_json: bool) -> None:
    """Reserve the budget that SPEC needs, train, sample, evaluate and report."""
    from pipeline.engine import submit as reserve
    from pipeline.spec import load_spec

    home = Home.locate()
    run = reserve(load_spec(spec), home, embedded=address is None)
    if not detach:
        click.echo(f"run {run.run_id}", err=True)
        run_here(run, home, address, as_json)
        return
    run_detached(run, address)

    def show(console: Console) -> None:
        console.print(run.run_id)

    emit({"run_id": run.run_id}, as_json, show)
