"""Train: fit the method to the end of the reservation, which is then settled."""

from pathlib import Path

from pipeline.cluster.calls import get_result
from pipeline.cluster.training import TrainingJob, training_group
from pipeline.plan.plan import build_method
from pipeline.privacy_statement import charged_mechanisms
from pipeline.runs.dataset_identity import TRAIN, DatasetIdentity
from pipeline.stages.base import TRACES, Context
from pipeline.tracking.release import Release
from pipeline.tracking.tracker import StageRun
from privacy.accounting import epsilon_bounds
from privacy.errors import IntegrityBroken
from synth.checkpoint import newest
from synth.storage import StoragePath
from synth.training import PRIVATE

MODEL = Path("model")
WEIGHTS = MODEL / "weights.safetensors"


class Train:
    """Write `release/model/weights.safetensors` and return what was never charged."""

    name = "train"

    def run(self, context: Context, tracked: StageRun) -> None:
        """See `Stage.run`."""
        run, spec = context.run, context.spec
        if note := _skipped(run.checkpoints):
            run.update(message=note)
        reservation = context.budget.reservation(context.reservation_id)
        job = TrainingJob(
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
                training_group(job, context.manager).run(stage.reach)
        get_result(context.manager.settle.remote(context.reservation_id))
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
    charged = charged_mechanisms(context.budget, reservation)
    delta = context.spec.privacy.delta
    bounds = epsilon_bounds(charged.values(), delta).stated()
    return {
        **{f"epsilon_{name}": bound for name, bound in bounds.items()},
        "delta": delta,
        "steps": charged[PRIVATE].steps,
        "dataset_epsilon": context.budget.odometer(context.spec.data.name).spent,
    }
