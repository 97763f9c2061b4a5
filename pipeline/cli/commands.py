"""The commands of `umbra`, each from its own file."""

import click

from pipeline.cli.audit import audit
from pipeline.cli.budget import budget
from pipeline.cli.cancel import cancel
from pipeline.cli.export import export
from pipeline.cli.ledger import ledger
from pipeline.cli.logs import logs
from pipeline.cli.output import show_help
from pipeline.cli.plan import plan
from pipeline.cli.report import report
from pipeline.cli.resume import resume
from pipeline.cli.runs import runs
from pipeline.cli.status import status
from pipeline.cli.submit import submit


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(package_name="umbra-synth", prog_name="umbra")
@click.pass_context
def cli(context: click.Context) -> None:
    """Synthetic image data sets under differential privacy.

    Exit codes: 0 fine, 1 failed, 2 bad usage or spec, 3 budget refused, 4 integrity broken.
    """
    show_help(context)


for _command in (
    plan, submit, runs, status, logs, resume, cancel, export, budget, ledger, audit, report
):  # fmt: skip
    cli.add_command(_command)
