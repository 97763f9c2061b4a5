"""Builds the report's page from its view and its templates."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.audit.ledger import audit_run
from pipeline.progress import duration
from pipeline.report import figures
from pipeline.report.view import ReportView, report_view
from pipeline.runs.directory import RunDirectory
from privacy.budget import Budget
from privacy.ledger.records import RELATION
from synth.storage import write_bytes

PAGE = "report.html"
FALSE_ALARMS = 0.01
_TEMPLATE = "report.html.j2"


def write_report(run: RunDirectory, budget: Budget) -> None:
    """Audit the run and write its page."""
    view = report_view(run, budget, audit_run(budget.ledger, run))
    write_bytes(run.release / PAGE, build_page(view).encode())


def build_page(view: ReportView) -> str:
    """Return one self-contained HTML page, which loads nothing; every text in it is escaped."""
    names = [samples.name for samples in view.samples]
    return (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            view=view,
            beside=any(samples.reference is not None for samples in view.samples),
            # Room for the longest class name, within reason; longer ones break into lines.
            name_width=min(12, 2 + max(map(len, names), default=0)),
            class_names=names,
            curve=figures.epsilon_curve(view.charges, view.bounds),
            false_alarms=FALSE_ALARMS,
            detection=figures.detection(view.bounds.rdp, view.odometer.delta, FALSE_ALARMS),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "epsilon": figures.epsilon,
        "left": figures.left,
        "power": figures.power,
        "percent": figures.percent,
        "percent_up": figures.percent_up,
        "number": figures.number,
        "duration": duration,
    }
    environment.globals |= {
        "strip": figures.strip,
        "confusion_map": figures.confusion_map,
        "share": figures.share,
        "relation": RELATION,
    }
    return environment
