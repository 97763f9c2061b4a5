"""`umbra report`: one HTML page that needs nothing else."""

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option
from pipeline.home import Home
from privacy.errors import InvalidRequest


@click.command()
@click.argument("run_id", metavar="RUN")
@json_option
def report(run_id: str, as_json: bool) -> None:
    """Write the report of RUN anew, with the budget and the audit as they are now."""
    from pipeline.runs.ledger_access import open_budget
    from pipeline.stages.report import PAGE, write_report

    home = Home.locate()
    run = home.run(run_id)
    if not run.state().is_done("synthesize"):
        raise InvalidRequest(f"run {run.run_id} has no images yet: there is nothing to report on")
    budget = open_budget(home)
    write_report(run, budget)
    path = run.release / PAGE

    def show(console: Console) -> None:
        console.print(str(path))

    emit({"report": str(path)}, as_json, show)
