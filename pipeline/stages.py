"""The stages of a run, in order: train, synthesize, evaluate, report.

A stage may start again after a crash, which must do no harm; a resumed run skips those that are
done.
"""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from pipeline import metrics
from pipeline.cluster import budget_actor, calls, evaluation, sampling, training
from pipeline.home import Home
from pipeline.plan import Plan, build_method
from pipeline.progress import Progress
from pipeline.report import page
from pipeline.runs import ledger_access, origin
from pipeline.runs.dataset_identity import TRAIN, DatasetIdentity, require_kept
from pipeline.runs.directory import RunDirectory
from pipeline.runs.origin import WEIGHTS
from pipeline.spec import Spec
from pipeline.tracking.release import Release
from pipeline.tracking.tracker import StageRun, TrackedRun
from privacy.accounting import epsilon_bounds
from privacy.budget import Budget, Reservation
from synth.data.manifest import Manifest, ShardEntry, file_sha256
from synth.data.shards import plan_shards
from synth.methods.moments import TEACHER
from synth.samplers import DIRECT
from synth.storage import write_json
from synth.training import PRIVATE

# Below internal/: workers' tracebacks, which may hold private values.
TRACES = "traces"
FORFEITED = (
    "the figures on the holdout were charged and then lost in a crash: they are not released, "
    "because one charge does not pay for a second draw"
)


@dataclass(frozen=True)
class Context:
    """A run that is being executed."""

    home: Home
    run: RunDirectory
    spec: Spec  # with the workers of this start
    plan: Plan
    reservation: Reservation  # pays for the training
    budget: Budget  # for reading
    manager: Any  # the cluster's budget manager, for charging and settling
    tracked: TrackedRun
    progress: Progress


class Stage(Protocol):
    """One part of a run."""

    name: str

    def run(self, context: Context, tracked: StageRun) -> None:
        """Do the stage's work; `tracked` is its own run in MLflow, for released values only.

        Raises:
            UmbraError: it failed; the message is for the user.
        """


class Train:
    """Write `release/model/weights.safetensors` and return what was never charged."""

    name = "train"

    def run(self, context: Context, tracked: StageRun) -> None:
        """Fit the method to the end of the reservation, and settle it with the weights' hash."""
        run, spec, budget = context.run, context.spec, context.budget
        reservation = context.reservation
        if note := origin.require_checkpoint(run, budget, reservation):
            run.update(message=note)
        job = training.TrainingJob(
            spec=spec,
            components=reservation.plan,
            reservation_id=reservation.id,
            content=DatasetIdentity.of(run, spec.data.name, TRAIN),
            checkpoints=run.checkpoints,
            traces=run.internal / TRACES,
            weights=run.release / WEIGHTS,
            origin=origin.origin_of(run, reservation),
        )
        # The weights are written at the very end. With them there the training is over, though the
        # run may have died before it noted that; its reservation may be settled by now.
        if not job.weights.exists():
            total = build_method(spec).extent(reservation.plan).steps
            with context.progress.stage("train", total) as stage:
                training.training_group(job, context.manager).run(stage.reach)
        weights = origin.require_weights(run, budget, reservation)
        run.update(trained_steps=ledger_access.last_checkpoint(run))
        calls.get_result(context.manager.settle.remote(reservation.id, weights))
        context.tracked.log_sampling_model(job.weights, spec)
        tracked.metrics(Release.spent(_spent(context)))


def _spent(context: Context) -> dict[str, float]:
    charged = ledger_access.charged_mechanisms(context.budget, context.reservation)
    delta = context.spec.privacy.delta
    bounds = epsilon_bounds(charged.values(), delta).stated()
    return {
        **{f"epsilon_{name}": bound for name, bound in bounds.items()},
        "delta": delta,
        "steps": sum(charged[name].steps for name in charged if name in (PRIVATE, TEACHER)),
        "dataset_epsilon": context.budget.odometer(context.spec.data.name).spent,
    }


class Synthesize:
    """Write `release/data/train-*.parquet` and `release/manifest.json`: post-processing."""

    name = "synthesize"

    def run(self, context: Context, tracked: StageRun) -> None:
        """Sample the shards that do not exist or are not intact."""
        run, spec = context.run, context.spec
        data, synthesize = spec.data, spec.synthesize
        counts = synthesize.class_counts(len(data.classes))
        # A model that draws images itself wastes fewest where a shard has all classes.
        mixed = synthesize.sampler == DIRECT
        shards = plan_shards(counts, synthesize.shard_rows, mixed=mixed)
        weights = run.release / WEIGHTS
        used = origin.require_weights(run, context.budget, context.reservation) or file_sha256(
            weights
        )
        kept = {shard.number: origin.kept_shard(run, used, shard.number) for shard in shards}
        made = {number: entry for number, entry in kept.items() if entry is not None}
        missing = [shard for shard in shards if shard.number not in made]
        with context.progress.stage("synthesize", sum(counts)) as stage:
            before = sum(entry.rows for entry in made.values())
            stage.reach(before)

            def note(entry: ShardEntry) -> None:
                number = int(entry.file.split("train-")[1][:5])
                made[number] = entry
                origin.note_shard(run, used, number, entry)
                stage.reach(sum(entry.rows for entry in made.values()))

            reach = lambda images: stage.reach(before + images)  # noqa: E731
            sampling.make_shards(spec, weights, run.release, missing, len(shards), note, reach)
        shape = (data.size, data.size, data.channels)
        entries = tuple(made[shard.number] for shard in shards)
        Manifest(shape, data.classes, counts, entries).write(run.release)
        tracked.metrics(Release.rows(sum(counts)))


class Evaluate:
    """Measure the images; figures go to internal/ and, where they may be released, to release/."""

    name = "evaluate"

    def run(self, context: Context, tracked: StageRun) -> None:
        """Do nothing for a spec without a section `evaluate`."""
        spec, run = context.spec, context.run
        if spec.evaluate is None:
            return
        origin.require_shards(run, context.budget, context.reservation)
        paying = run.state().holdout_reservation_id
        known = DatasetIdentity.kept(run, spec.data.name)
        require_kept(known, context.budget.shown(context.reservation.id))
        tasks = 2 * len(spec.evaluate.classifiers) + 1
        with context.progress.stage("evaluate", tasks) as stage:
            traces = run.internal / TRACES
            results = evaluation.evaluate(spec, run.release, traces, stage.advance, known)
        write_json(run.internal / metrics.METRICS, results)
        # Against a public reference figures are released; the ceiling needs the training images
        # themselves, so it is released only where those are public, too.
        shown = context.budget.shown(context.reservation.id)
        # Again: by now the ledger may tell apart what it could not.
        require_kept(known, shown)
        released = metrics.releasable(shown, results)
        if released:
            write_json(run.release / metrics.METRICS, released)
            tracked.metrics(Release.evaluation(metrics.flat(released), shown))
        # Against a private one, noisy counts where the spec pays for them.
        if paying and not (run.release / metrics.DP_METRICS).exists():
            paid = _pay(context, paying, results)
            if paid is None:
                run.update(message=FORFEITED)
                return
            write_json(run.release / metrics.DP_METRICS, asdict(paid))
            tracked.metrics(Release.paid(paid.flat()))


def _pay(
    context: Context, reservation_id: str, results: dict[str, object]
) -> metrics.PaidMetrics | None:
    """Charge the holdout's reservation, then draw; None if an attempt that died charged it."""
    # The attempt may have drawn, and a second draw would need a second charge.
    lost = any(context.budget.charged_steps(reservation_id).values())
    reservation = context.budget.reservation(reservation_id)
    if not lost:
        attempt = budget_actor.begin_attempt(context.manager, reservation_id)
        meter = budget_actor.ActorMeter(context.manager, reservation_id, attempt)
        for part in reservation.plan:
            meter.charge(part.name, part.mechanism.steps)
    calls.get_result(context.manager.settle.remote(reservation_id))
    return None if lost else metrics.release(results, reservation)


class Report:
    """Write `release/report.html`, one page that needs nothing else, and copy it to MLflow."""

    name = "report"

    def run(self, context: Context, tracked: StageRun) -> None:
        """Write the page with the budget and the audit as they are now."""
        with context.progress.stage("report"):
            page.write_report(context.run, context.budget)
            context.tracked.artifact(context.run.release / page.PAGE)


STAGES: tuple[Stage, ...] = (Train(), Synthesize(), Evaluate(), Report())
