"""Report: one HTML page that needs nothing else, for people who were not there."""

from pipeline.audit import audit_run
from pipeline.report.build import build_report
from pipeline.report.collect import collect
from pipeline.runs.directory import RunDirectory
from pipeline.stages.base import Context
from pipeline.tracking.tracker import StageRun
from privacy.budget import Budget
from synth.storage import write_bytes

PAGE = "report.html"


class Report:
    """Leaves `release/report.html` and copies it, the manifest and the model to MLflow."""

    name = "report"

    def run(self, context: Context, tracked: StageRun) -> None:
        """See `Stage.run`."""
        with context.progress.stage("report"):
            write_report(context.run, context.budget)
            context.tracked.artifact(context.run.release / PAGE)


def write_report(run: RunDirectory, budget: Budget) -> None:
    """Audit the run and write its page anew."""
    audit = audit_run(budget.ledger, run)
    page = build_report(collect(run, budget, audit))
    write_bytes(run.release / PAGE, page.encode())
