"""`umbra resume`: go on with a run from what is durable."""

import click

from pipeline.cli.output import json_option
from pipeline.cli.running import require_reachable, where_options, work_on
from pipeline.home import Home
from pipeline.spec.sections import Workers


@click.command()
@click.argument("run_id", metavar="RUN")
@where_options
@json_option
def resume(
    run_id: str, address: str | None, detach: bool, workers: Workers | None, as_json: bool
) -> None:
    """Go on with RUN as a new attempt: fresh masks, fresh noise, charged again."""
    home = Home.locate()
    run = home.run(run_id)
    require_reachable(address, detach)
    work_on(run, home, address, workers, detach, as_json)
