"""Builds the report page from facts."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.progress import duration
from pipeline.report import figures, text
from pipeline.report.facts import ReportFacts

TEMPLATE = "report.html.j2"
FALSE_ALARMS = 0.01


def build_report(facts: ReportFacts) -> str:
    """One self-contained HTML page: no request leaves it, and every fact in it is escaped.

    The page forbids itself scripts and outside resources by a content security policy, so that
    holds even where a hostile name were to get past the escaping.
    """
    template = _environment().get_template(TEMPLATE)
    classifiers = facts.evaluation.classifiers if facts.evaluation else ()
    return template.render(
        facts=facts,
        best=max(classifiers, key=lambda classifier: classifier.accuracy, default=None),
        beside=any(item.reference is not None for item in facts.classes),
        # Room for the longest class name, within reason; longer ones break into lines.
        name_width=min(12, 2 + max((len(item.name) for item in facts.classes), default=0)),
        class_names=tuple(item.name for item in facts.classes),
        curve=figures.epsilon_curve(facts.spending),
        false_alarms=FALSE_ALARMS,
        detection=text.detection(facts.spending.epsilon_rdp, facts.spending.delta, FALSE_ALARMS),
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
        "epsilon": text.epsilon,
        "left": text.left,
        "power": text.power,
        "percent": text.percent,
        "percent_up": text.percent_up,
        "number": text.number,
        "duration": duration,
    }
    environment.globals |= {
        "strip": figures.strip,
        "confusion_map": figures.confusion_map,
        "share": figures.share,
    }
    return environment
