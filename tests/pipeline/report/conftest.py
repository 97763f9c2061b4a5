"""The view of a finished run, with numbers that a test can name."""

import shutil
from dataclasses import replace

import pytest

from pipeline.audit.ledger import audit_run
from pipeline.home import Home
from pipeline.report.page import ReportView, report_view
from pipeline.runs.ledger_access import open_budget
from privacy.accounting import EpsilonBounds


@pytest.fixture(scope="session")
def view(tmp_path_factory, _finished) -> ReportView:
    home = tmp_path_factory.mktemp("report") / "home"
    shutil.copytree(_finished, home)
    home = Home.locate({"UMBRA_HOME": str(home)})
    (run,) = home.runs()
    budget = open_budget(home)
    made = report_view(run, budget, audit_run(budget.ledger, run))
    spent = {"epsilon": 15.0, "delta": 1e-4, "spent": 9.6431, "reserved": 1.2, "left": 4.9417}
    results = {**made.results, "ceiling": made.results["synthetic"]}
    return replace(
        made,
        odometer=replace(made.odometer, **spent),
        bounds=EpsilonBounds(9.6431, 8.8712, 8.8405),
        charges=tuple((t, 9.6431 * (t / 400) ** 0.55) for t in range(0, 401, 10)),
        results=results,
    )


@pytest.fixture
def private_view(view: ReportView) -> ReportView:
    """The same run with a private reference."""
    hidden = tuple(replace(samples, reference=None) for samples in view.samples)
    return replace(view, results={}, samples=hidden)
