"""`umbra submit`: run a spec under its data set's budget."""

from pathlib import Path

import click

from pipeline.cli.output import json_option
from pipeline.cli.running import require_reachable, where_options, work_on
from pipeline.home import Home
from pipeline.spec.sections import Workers


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@where_options
@json_option
def submit(
    spec: Path, address: str | None, detach: bool, workers: Workers | None, as_json: bool
) -> None:
    """Reserve the budget that SPEC needs, train, sample, evaluate and report."""
    from pipeline.runs.engine import submit as reserve
    from pipeline.spec import load_spec

    home, asked = Home.locate(), load_spec(spec)
    require_reachable(address, detach)
    run = reserve(asked, home, embedded=address is None, workers=workers)
    if not detach:
        click.echo(f"run {run.run_id}", err=True)
    work_on(run, home, address, workers, detach, as_json)
