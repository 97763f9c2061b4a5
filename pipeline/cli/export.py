"""`umbra export`: the synthetic data set as a folder that may be shared."""

from pathlib import Path

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option
from pipeline.home import Home


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
    "--allow-void", is_flag=True, help="Export a seeded run too, which promises no privacy."
)
@json_option
def export(run_id: str, folder: Path, form: str, allow_void: bool, as_json: bool) -> None:
    """Export the images of RUN to the new folder DIR, with a card and privacy.json."""
    from pipeline.runs.export import export_run
    from pipeline.runs.ledger_access import open_budget

    home = Home.locate()
    run = home.run(run_id)
    budget = open_budget(home)
    exported = export_run(run, budget, folder, form, allow_void=allow_void)

    def show(console: Console) -> None:
        console.print(f"exported to {exported.folder}")
        console.print(f"manifest sha256 {exported.manifest_sha256}, recorded in the ledger")

    facts = {"folder": str(exported.folder), "manifest_sha256": exported.manifest_sha256}
    emit(facts, as_json, show)
