"""The report: one HTML page about one run that needs nothing else."""

from pipeline.report.build import build_report
from pipeline.report.facts import ReportFacts

__all__ = ["ReportFacts", "build_report"]
