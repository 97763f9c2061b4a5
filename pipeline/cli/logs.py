"""`umbra logs`: what a run told, which is nothing private."""

import time

import click

from pipeline.cli.output import json_option
from pipeline.cli.runs import outward_status
from pipeline.home import Home

_SECONDS = 0.5


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run ends.")
@json_option
def logs(run_id: str, follow: bool, as_json: bool) -> None:
    """Print the log of RUN: stages and counts."""
    run = Home.locate().run(run_id)
    if not run.log_path.exists():
        run.log_path.touch(mode=0o600)
    with run.log_path.open(errors="replace") as log:
        while True:
            for line in log:
                click.echo(_as_json(line) if as_json else line, nl=as_json)
            if not follow or outward_status(run.state()) != "running":
                return
            time.sleep(_SECONDS)


def _as_json(line: str) -> str:
    import json

    return json.dumps({"line": line.rstrip("\n")}, ensure_ascii=False)
