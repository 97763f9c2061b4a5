"""What a person is told when a run has ended."""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.audit import audit_run
from pipeline.home import Home
from pipeline.metrics import (
    CEILING,
    METRICS,
    SYNTHETIC,
    PaidMetrics,
    likeness,
    paid_metrics,
    released,
)
from pipeline.privacy_statement import privacy_statement
from pipeline.runs.directory import RunDirectory
from privacy.budget import Budget


@dataclass(frozen=True)
class Summary:
    """The end of a run in a screenful; released values only.

    Attributes:
        run_id: the run.
        classifiers: (name, accuracy when trained on synthetic images, the same on real or None).
        scores: (name, value) of the metrics on features.
        withheld: why there are no metrics, empty where there are.
        paid: noisy figures against a private holdout that were paid for, if any.
        privacy: what was spent, and the audit's verdict.
        places: where the report, the data and MLflow are.
    """

    run_id: str
    classifiers: tuple[tuple[str, float, float | None], ...]
    scores: tuple[tuple[str, float], ...]
    withheld: str
    paid: PaidMetrics | None
    privacy: dict[str, Any]
    places: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain JSON values."""
        return asdict(self)


def summarise(run: RunDirectory, home: Home, budget: Budget) -> Summary:
    """Audit a finished run and collect what its owner wants to know first."""
    from pipeline.tracking.connection import without_password

    classifiers, scores, withheld = _metrics(run)
    return Summary(
        run_id=run.run_id,
        classifiers=classifiers,
        scores=scores,
        withheld=withheld,
        paid=paid_metrics(run),
        privacy=_privacy(run, budget),
        places={
            "report": str(run.release / "report.html"),
            "data": str(run.release / "data"),
            "MLflow": f"mlflow ui --backend-store-uri {without_password(home.mlflow_uri)}",
            "export": f"umbra export {run.run_id} DIR",
        },
    )


def _metrics(
    run: RunDirectory,
) -> tuple[tuple[tuple[str, float, float | None], ...], tuple[tuple[str, float], ...], str]:
    results = released(run)
    if not results:
        internal = run.internal / METRICS
        kept = "the reference is private: its metrics stay in the run's internal folder"
        return (), (), kept if internal.exists() else "no evaluation was asked for"
    tops = results[CEILING]
    classifiers = tuple(
        (name, result["accuracy"], tops[name]["accuracy"] if name in tops else None)
        for name, result in results[SYNTHETIC].items()
    )
    return classifiers, tuple(likeness(results).items()), ""


def _privacy(run: RunDirectory, budget: Budget) -> dict[str, Any]:
    reserved = run.state().reservation_id
    assert reserved is not None  # noqa: S101 - a finished run has reserved
    said = privacy_statement(budget, reserved)
    meter = budget.odometer(said["dataset"])
    audit = audit_run(budget.ledger, run)
    bounds = ", ".join(f"{name.upper()} {bound}" for name, bound in said["epsilon"].items())
    return {
        "spent by this run": f"ε ≤ {bounds} at δ = {said['delta']:g}, for {said['unit']}",
        "budget of the data": (
            f"{meter.name}: ε = {meter.epsilon}, spent {meter.spent}, left {meter.left}"
        ),
        "void": "YES: a seed was given, nothing is promised" if said["void"] else "no",
        "audit": "passed" if audit.ok else "FAILED: run `umbra audit` for the findings",
    }
