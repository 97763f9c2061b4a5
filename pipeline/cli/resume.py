"""`umbra resume`: go on with a run from what is durable."""

import click

from pipeline.cli.output import json_option
from pipeline.cli.running import run_here
from pipeline.cli.submit import address_option
from pipeline.home import Home


@click.command()
@click.argument("run_id", metavar="RUN")
@address_option
@json_option
def resume(run_id: str, address: str | None, as_json: bool) -> None:
    """Go on with RUN as a new attempt: fresh masks, fresh noise, charged again."""
    home = Home.locate()
    run_here(home.run(run_id), home, address, as_json)
