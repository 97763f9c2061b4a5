"""`umbra export` and `umbra report`: the synthetic data set, and a page about it, to be shared."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.output import emit, json_option
from pipeline.home import Home
from privacy.errors import InvalidRequest

if TYPE_CHECKING:
    from rich.console import Console


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
