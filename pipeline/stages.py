"""The stages of a run, in order: train, synthesize, evaluate, report.

A stage may start again after a crash, which must do no harm; a resumed run skips those that are
done.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline import metrics
from pipeline.cluster import budget_actor, calls, evaluation, sampling, training
from pipeline.home import Home
from pipeline.plan import Plan, build_method
from pipeline.progress import Progress
from pipeline.report import page
from pipeline.runs import ledger_access
from pipeline.runs.dataset_identity import HOLDOUT, TRAIN, DatasetIdentity
from pipeline.runs.directory import RunDirectory
from pipeline.spec import Spec
from pipeline.tracking.release import Release
from pipeline.tracking.tracker import StageRun, TrackedRun
from privacy.accounting import epsilon_bounds
from privacy.budget import Budget
from privacy.errors import IntegrityBroken
from synth.checkpoint import newest
from synth.data.manifest import Manifest, ShardEntry, file_sha256
from synth.data.shards import plan_shards
from synth.storage import StoragePath, write_json
from synth.training import PRIVATE

# Below internal/: workers' tracebacks, which may hold private values.
TRACES = "traces"
WEIGHTS = Path("model/weights.safetensors")
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
    budget: Budget  # for reading
    manager: Any  # the cluster's budget manager, for charging and settling
    tracked: TrackedRun
    progress: Progress

    @property
    def reservation_id(self) -> str:
        """The run's reservation, which ingest made."""
        reservation_id = self.run.state().reservation_id
        assert reservation_id is not None  # noqa: S101
        return reservation_id


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
        """Fit the method to the end of the reservation, and settle it."""
        run, spec = context.run, context.spec
        if note := _skipped(run.checkpoints):
            run.update(message=note)
        reservation = context.budget.reservation(context.reservation_id)
        job = training.TrainingJob(
            spec=spec,
            components=reservation.plan,
            reservation_id=context.reservation_id,
            content=DatasetIdentity.of(run, spec.data.name, TRAIN),
            checkpoints=run.checkpoints,
            traces=run.internal / TRACES,
            weights=run.release / WEIGHTS,
        )
        # The weights are written at the very end. With them there the training is over, though the
        # run may have died before it noted that; its reservation may be settled by now.
        if not job.weights.exists():
            total = build_method(spec).extent(reservation.plan).steps
            with context.progress.stage("train", total) as stage:
                training.training_group(job, context.manager).run(stage.reach)
        run.update(trained_steps=ledger_access.last_checkpoint(run))
        calls.get_result(context.manager.settle.remote(context.reservation_id))
        context.tracked.log_sampling_model(run.release / WEIGHTS, spec)
        tracked.metrics(Release.spent(_spent(context)))


def _skipped(checkpoints: StoragePath) -> str:
    """Name the damaged checkpoints; raise IntegrityBroken if there are some and none is sound."""
    search = newest(checkpoints)
    if search.skipped and search.checkpoint is None:
        # Their steps are charged: starting afresh would train for the few that are left.
        raise IntegrityBroken(
            f"no checkpoint in {checkpoints} is sound: {'; '.join(search.skipped)}. Restore one "
            "from a backup and resume; or remove the folder to begin anew with the steps that were "
            "never charged; or submit a new run"
        )
    return "; ".join(search.skipped)


def _spent(context: Context) -> dict[str, float]:
    reservation = context.budget.reservation(context.reservation_id)
    charged = ledger_access.charged_mechanisms(context.budget, reservation)
    delta = context.spec.privacy.delta
    bounds = epsilon_bounds(charged.values(), delta).stated()
    return {
        **{f"epsilon_{name}": bound for name, bound in bounds.items()},
        "delta": delta,
        "steps": charged[PRIVATE].steps,
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
        shards = plan_shards(counts, synthesize.shard_rows)
        weights = run.release / WEIGHTS
        # Kept by weights: shards of other weights, say from a backup, do not belong to this set.
        notes = run.internal / "shards" / file_sha256(weights)[:16]
        notes.mkdir(parents=True, exist_ok=True)
        made = {s.number: entry for s in shards if (entry := _made(run, notes, s.number))}
        missing = [shard for shard in shards if shard.number not in made]
        with context.progress.stage("synthesize", sum(counts)) as stage:
            before = sum(entry.rows for entry in made.values())
            stage.reach(before)

            def note(entry: ShardEntry) -> None:
                number = int(entry.file.split("train-")[1][:5])
                made[number] = entry
                write_json(notes / f"{number}.json", asdict(entry))
                stage.reach(sum(entry.rows for entry in made.values()))

            reach = lambda images: stage.reach(before + images)  # noqa: E731
            sampling.make_shards(spec, weights, run.release, missing, len(shards), note, reach)
        shape = (data.size, data.size, data.channels)
        entries = tuple(made[shard.number] for shard in shards)
        Manifest(shape, data.classes, counts, entries).write(run.release)
        tracked.metrics(Release.rows(sum(counts)))


def _made(run: RunDirectory, notes: Path, number: int) -> ShardEntry | None:
    """Return the entry of a shard that an earlier attempt made and that is unchanged."""
    note = notes / f"{number}.json"
    if not note.exists():
        return None
    entry = ShardEntry(**json.loads(note.read_text()))
    path = run.release / entry.file
    return entry if path.is_file() and file_sha256(path) == entry.sha256 else None


class Evaluate:
    """Measure the images; figures go to internal/ and, where they may be released, to release/."""

    name = "evaluate"

    def run(self, context: Context, tracked: StageRun) -> None:
        """Do nothing for a spec without a section `evaluate`."""
        spec, run = context.spec, context.run
        if spec.evaluate is None:
            return
        paying = run.state().holdout_reservation_id
        holdout = DatasetIdentity.of(run, spec.data.name, HOLDOUT) if paying else None
        tasks = 2 * len(spec.evaluate.classifiers) + 1
        with context.progress.stage("evaluate", tasks) as stage:
            traces = run.internal / TRACES
            results = evaluation.evaluate(spec, run.release, traces, stage.advance, holdout)
        write_json(run.internal / metrics.METRICS, results)
        # Against a public reference figures are released; the ceiling needs the training images
        # themselves, so it is released only where those are public, too.
        released = metrics.releasable(spec, results)
        if released:
            write_json(run.release / metrics.METRICS, released)
            tracked.metrics(Release.evaluation(metrics.flat(released), reference="public"))
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
