"""The last two stages: measure the synthetic images against real ones, and write the report.

Figures against private images stay in `internal/`. Against a public reference they are released;
the ceiling needs the training images themselves, so it is released only where those are public.
Against a private reference noisy counts are released where the spec pays for them.
"""

from dataclasses import asdict

from pipeline.cluster.budget_actor import ActorMeter, begin_attempt
from pipeline.cluster.calls import get_result
from pipeline.cluster.evaluation import evaluate
from pipeline.metrics import DP_METRICS, METRICS, PaidMetrics, flat, releasable, release
from pipeline.report.page import PAGE, write_report
from pipeline.runs.dataset_identity import HOLDOUT, DatasetIdentity
from pipeline.stages.base import TRACES, Context
from pipeline.tracking.release import Release
from pipeline.tracking.tracker import StageRun
from synth.storage import write_json

FORFEITED = (
    "the figures on the holdout were charged and then lost in a crash: they are not released, "
    "because one charge does not pay for a second draw"
)


class Evaluate:
    """Writes `metrics.json` to `internal/` or `release/`, and `dp-metrics.json` if paid for."""

    name = "evaluate"

    def run(self, context: Context, tracked: StageRun) -> None:
        """See `Stage.run`; does nothing for a spec without a section `evaluate`."""
        spec, run = context.spec, context.run
        if spec.evaluate is None:
            return
        paying = run.state().holdout_reservation_id
        holdout = DatasetIdentity.of(run, spec.data.name, HOLDOUT) if paying else None
        tasks = 2 * len(spec.evaluate.classifiers) + 1
        with context.progress.stage("evaluate", tasks) as stage:
            internal = run.internal / TRACES
            results = evaluate(spec, run.release, internal, stage.advance, holdout)
        write_json(run.internal / METRICS, results)
        released = releasable(spec, results)
        if released:
            write_json(run.release / METRICS, released)
            tracked.metrics(Release.evaluation(flat(released), reference="public"))
        if paying and not (run.release / DP_METRICS).exists():
            paid = _pay(context, paying, results)
            if paid is None:
                run.update(message=FORFEITED)
                return
            write_json(run.release / DP_METRICS, asdict(paid))
            tracked.metrics(Release.paid(paid.flat()))


def _pay(context: Context, reservation_id: str, results: dict[str, object]) -> PaidMetrics | None:
    """Charge the holdout's reservation, then draw; None if an attempt that died charged it."""
    lost = any(context.budget.charged_steps(reservation_id).values())
    reservation = context.budget.reservation(reservation_id)
    if not lost:
        attempt = begin_attempt(context.manager, reservation_id)
        meter = ActorMeter(context.manager, reservation_id, attempt)
        for part in reservation.plan:
            meter.charge(part.name, part.mechanism.steps)
    get_result(context.manager.settle.remote(reservation_id))
    return None if lost else release(results, reservation)


class Report:
    """Writes `release/report.html`, one page that needs nothing else, and copies it to MLflow."""

    name = "report"

    def run(self, context: Context, tracked: StageRun) -> None:
        """See `Stage.run`."""
        with context.progress.stage("report"):
            write_report(context.run, context.budget)
            context.tracked.artifact(context.run.release / PAGE)
