"""Private training on Ray Train: the life cycle is Ray's, every step is `synth.training`'s.

Training is at-least-once (a rank killed after a step makes it run again), so nothing here decides
what was spent: each start of the workers is a new attempt that charges for itself. Nothing that is
computed depends on how many there are, so their number may be another at every start.
"""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from safetensors.torch import save as to_safetensors

from pipeline.cluster.abort import disk_write_error, raised_if
from pipeline.cluster.budget_actor import ActorMeter, begin_attempt
from pipeline.cluster.calls import WorkerFailed, contained
from pipeline.cluster.capacity import per_worker
from pipeline.cluster.freed_memory import keep_freed_memory
from pipeline.cluster.lean_trainer import LeanTrainer
from pipeline.cluster.messages import ProgressBoard, Refusal
from pipeline.cluster.workers_group import NoGroup, workers_group
from pipeline.models import build_denoiser
from pipeline.progress import run_periodically
from pipeline.runs.dataset_identity import DatasetIdentity
from pipeline.spec import Spec
from pipeline.spec.sections import Resources
from privacy.collective import Collective
from privacy.errors import UmbraError
from synth.attempt import Attempt
from synth.checkpoint import newest
from synth.records import Records
from synth.storage import ObjectPath, StoragePath, write_bytes
from synth.training import Trainer, Training

_RESTARTS = 2  # of the worker group, before the driver is told; `umbra resume` may follow
_SECONDS = 2.0  # between two looks at how far it is
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


@dataclass(frozen=True)
class TrainingJob:
    """All that a training worker is told.

    Attributes:
        spec: the run's spec.
        training: the public settings that the plan gave.
        reservation_id: what steps are charged to.
        content: the records that were reserved for; its key, the run's secret, keys the masks too.
        checkpoints: folder for checkpoints (internal).
        traces: folder for the traces of unforeseen errors (internal).
        weights: file for the moving average's weights (released).
    """

    spec: Spec
    training: Training
    reservation_id: str
    content: DatasetIdentity
    checkpoints: StoragePath
    traces: Path
    weights: StoragePath


def train(
    job: TrainingJob,
    name: str,
    storage: StoragePath,
    manager: Any,
    on_steps: Callable[[int], object],
) -> None:
    """Run the training to its end on the workers that the spec asks for.

    Args:
        job: what to train.
        name: Ray Train's name for this start of the run.
        storage: Ray Train's own folder (internal).
        manager: the budget manager's actor.
        on_steps: told now and then how many steps, of all phases, are done.

    Raises:
        UmbraError: as the worker raised it, or with the type of what went wrong there.
    """
    progress, refusal = ProgressBoard(), Refusal()
    trainer = LeanTrainer(
        _worker(job, manager, progress, refusal),
        torch_config=NoGroup(),
        scaling_config=_scaling(job.spec.resources, job.training),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage.key if isinstance(storage, ObjectPath) else storage),
            storage_filesystem=storage.filesystem() if isinstance(storage, ObjectPath) else None,
            failure_config=FailureConfig(max_failures=_RESTARTS),
        ),
    )

    def show() -> None:
        on_steps(sum(progress.read().values()))

    def refused() -> UmbraError | None:
        with suppress(UmbraError):
            return refusal.read()
        return None

    try:
        # Ray Train starts the workers of a failed group anew, to hear a refusal again; where none
        # can be started it would try for ever.
        with run_periodically(show, _SECONDS), raised_if(refused):
            trainer.fit()
    except Exception as error:
        why = refused() or disk_write_error(job.traces.parent) or UmbraError(_in_words(error))
        raise why from None
    else:
        show()
        if told := refusal.read():
            raise told
    finally:
        progress.clear()
        refusal.clear()


def _scaling(resources: Resources, training: Training) -> ScalingConfig:
    """Return how many workers Ray is to start, each time it starts them, and what each holds."""
    workers: int | tuple[int, int]
    if resources.workers == "auto":
        # More than there are records in a batch would be idle.
        workers = (1, max(1, int(training.dpsgd.expected_batch)))
        # Ray counts nodes every 20 s, so after a loss it may wait for room that is gone; after so
        # many seconds it counts again. Only that wait is limited, not how long a start may take.
        os.environ[_START_TIMEOUT] = "5"
    else:
        workers = resources.workers
    return ScalingConfig(
        num_workers=workers,
        use_gpu=resources.gpus_per_worker > 0,
        resources_per_worker=per_worker(resources),
        # Workers that are well are left alone: to start them anew forfeits what they were charged.
        elastic_resize_monitor_interval_s=math.inf,
    )


def _in_words(error: Exception) -> str:
    """Return what a failure of all restarts may tell: types, and the workers' own words."""
    failures = getattr(error, "worker_failures", {}).values()
    for failure in failures:
        # Ray wraps what a worker raised; beside it stand those who lost touch with that worker.
        raised = getattr(failure, "_base_exc", failure)
        if isinstance(raised, WorkerFailed):
            return f"training: {raised}"
    kinds = sorted({type(failure).__name__ for failure in failures}) or [type(error).__name__]
    return (
        f"training failed with {', '.join(kinds)}: a worker ran out of memory, was killed or could "
        "not be started. `umbra resume` goes on from the last checkpoint"
    )


def _worker(
    job: TrainingJob, manager: Any, progress: ProgressBoard, refusal: Refusal
) -> Callable[[], None]:
    """Return the function that every worker runs."""

    resources = job.spec.resources
    use_gpu = resources.gpus_per_worker > 0

    def work() -> None:
        if refusal.read() is not None:
            # A refusal is final: this is only Ray starting the workers again after it.
            return
        torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
        keep_freed_memory()
        try:
            with contained(job.traces), workers_group(resources.gpus_per_worker) as collective:
                device = torch.device("cuda" if use_gpu else "cpu")
                _train_here(job, manager, progress, collective, device)
        except WorkerFailed:
            raise
        except UmbraError as error:
            refusal.tell(error)
            if get_context().get_world_size() > 1:
                # The others may wait for a word from this one; Ray stops them only for an error.
                raise

    return work


def _train_here(
    job: TrainingJob,
    manager: Any,
    progress: ProgressBoard,
    collective: Collective,
    device: torch.device,
) -> None:
    first = collective.rank == 0
    number = begin_attempt(manager, job.reservation_id) if first else 0
    attempt = Attempt.start(number, job.content.key, job.spec.privacy.seed, collective)
    trainer = Trainer(
        job.training,
        build_denoiser(job.spec).to(device),
        _load(job, device),
        attempt,
        ActorMeter(manager, job.reservation_id, attempt.number),
        job.checkpoints,
        collective,
        progress.tell if first else _ignore,
    )
    weights = trainer.run()
    if first:
        # The first alone has written checkpoints; the others may be here before it has.
        _require_steps(job.checkpoints)
        write_bytes(job.weights, to_safetensors({k: v.cpu() for k, v in weights.items()}))


def _require_steps(checkpoints: StoragePath) -> None:
    found = newest(checkpoints).checkpoint
    if found is None or found.step == 0:
        raise UmbraError(
            "every reserved step was charged, and none survived the crashes: there is no trained "
            "model to release. Submit a new run."
        )


def _ignore(phase: str, done: int, total: int) -> None:
    """Only rank 0 tells how far it is."""


def _load(job: TrainingJob, device: torch.device) -> Records:
    """Load the records again where they are used, and hold them against what was reserved."""
    data = job.spec.data
    loaded = job.content.verify(data.source.load(data.size, data.channels, data.classes))
    return Records.from_uint8(loaded.images, loaded.labels, device)
