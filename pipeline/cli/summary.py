"""What is printed when a run has ended; released values only."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import metrics
from pipeline.audit.ledger import audit_run
from pipeline.cli.output import pairs, table
from pipeline.home import Home, without_password
from pipeline.runs.directory import RunDirectory
from pipeline.runs.ledger_access import privacy_statement
from privacy.budget import Budget

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Summary:
    """The result of a run on one screen."""

    run_id: str
    # (name, accuracy when trained on synthetic images, the same on real ones if released)
    classifiers: tuple[tuple[str, float, float | None], ...]
    scores: tuple[tuple[str, float], ...]  # metrics on features
    withheld: str  # why there are no metrics, empty where there are
    paid: metrics.PaidMetrics | None
    privacy: dict[str, Any]  # what was spent, and the audit's verdict
    places: dict[str, str]  # of the report, the data and MLflow


def summarise(run: RunDirectory, home: Home, budget: Budget) -> Summary:
    """Audit a finished run and collect what its owner wants to know first."""
    results = metrics.released(run)
    ceilings = results.get(metrics.CEILING, {})
    return Summary(
        run_id=run.run_id,
        classifiers=tuple(
            (name, result["accuracy"], ceilings[name]["accuracy"] if name in ceilings else None)
            for name, result in results.get(metrics.SYNTHETIC, {}).items()
        ),
        scores=tuple(metrics.likeness(results).items()) if results else (),
        withheld="" if results else _why_withheld(run),
        paid=metrics.paid_metrics(run),
        privacy=_privacy(run, budget),
        places={
            "report": str(run.release / "report.html"),
            "data": str(run.release / "data"),
            "MLflow": f"mlflow ui --backend-store-uri {without_password(home.mlflow_uri)}",
            "export": f"umbra export {run.run_id} DIR",
        },
    )


def _why_withheld(run: RunDirectory) -> str:
    if (run.internal / metrics.METRICS).exists():
        return "the reference is private: its metrics stay in the run's internal folder"
    return "no evaluation was asked for"


def _privacy(run: RunDirectory, budget: Budget) -> dict[str, Any]:
    reserved = run.state().reservation_id
    assert reserved is not None  # noqa: S101 - a finished run has reserved
    statement = privacy_statement(budget, reserved)
    meter = budget.odometer(statement["dataset"])
    audit = audit_run(budget.ledger, run)
    bounds = ", ".join(f"{name.upper()} {bound}" for name, bound in statement["epsilon"].items())
    return {
        "spent by this run": f"ε ≤ {bounds} at δ = {statement['delta']:g}, for {statement['unit']}",
        "budget of the data": (
            f"{meter.name}: ε = {meter.epsilon}, spent {meter.spent}, left {meter.left}"
        ),
        "void": "YES: a seed was given, so the run guarantees no privacy"
        if statement["void"]
        else "no",
        "audit": "passed" if audit.ok else "FAILED: run `umbra audit` for the findings",
    }


def show_summary(console: "Console", summary: Summary) -> None:
    """Print accuracy, scores, what was spent, and where everything is."""
    if summary.classifiers:
        rows = [
            (name, f"{100 * accuracy:.1f} %", "–" if top is None else f"{100 * top:.1f} %")
            for name, accuracy, top in summary.classifiers
        ]
        columns = ["classifier", "trained on synthetic", "trained on real"]
        console.print(table("Accuracy on the real holdout", columns, rows, [1, 2]))
        scores = [(name, f"{value:.4g}") for name, value in summary.scores]
        console.print(table("Likeness to the real holdout", ["metric", "value"], scores, [1]))
    elif summary.paid:
        _show_paid(console, summary.paid)
    elif summary.withheld:
        console.print(f"{summary.withheld}\n")
    console.print(pairs("Privacy", summary.privacy))
    console.print(pairs("Where", summary.places))


def _show_paid(console: "Console", paid: metrics.PaidMetrics) -> None:
    rows = [
        (name, f"{100 * of.value:.1f} %", f"{100 * of.low:.1f} to {100 * of.high:.1f} %")
        for name, of in paid.classifiers.items()
    ]
    columns = ["classifier", "accuracy, noisy", f"{100 * paid.confidence:.0f} % interval"]
    title = f"Accuracy on the private holdout, released for ε = {paid.epsilon}"
    console.print(table(title, columns, rows, [1, 2]))
