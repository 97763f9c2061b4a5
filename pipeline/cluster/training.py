"""Private training on Ray Train: the life cycle is Ray's, every step is `synth.training`'s.

Training is at-least-once (a rank killed after a step makes it run again), so nothing here decides
what was spent: each start of the workers is a new attempt that charges for itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors.torch import save as to_safetensors

from pipeline.building import build_denoiser
from pipeline.cluster.budget_actor import ActorMeter
from pipeline.cluster.calls import answer
from pipeline.spec import Spec
from privacy.collective import Alone, Collective, ProcessGroup
from privacy.errors import DataError, UmbraError
from privacy.fingerprint import fingerprint
from synth.atomic import write_bytes
from synth.attempt import Attempt
from synth.checkpoint import newest
from synth.records import Records
from synth.training import Trainer, Training

_RESTARTS = 2  # of the worker group, before the driver is told; `umbra resume` may follow


@dataclass(frozen=True)
class TrainingJob:
    """All that a training worker is told.

    Attributes:
        spec: the run's spec.
        training: the public settings that the plan gave.
        reservation_id: what steps are charged to.
        run_key: the run's secret, for masks and for `content`.
        content: fingerprint under `run_key` of the records that were reserved for.
        checkpoints: folder for checkpoints (internal).
        weights: file for the moving average's weights (released).
    """

    spec: Spec
    training: Training
    reservation_id: str
    run_key: bytes = field(repr=False)
    content: str
    checkpoints: Path
    weights: Path


def train(job: TrainingJob, name: str, storage: Path, manager: Any, board: Any) -> None:
    """Run the training to its end on the workers that the spec asks for.

    Args:
        job: what to train.
        name: Ray Train's name for the run; the same name restores.
        storage: Ray Train's own folder (internal).
        manager: the budget manager's actor.
        board: where steps done are told.

    Raises:
        UmbraError: as the worker raised it, or with the type of what went wrong there.
    """
    resources = job.spec.resources
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    if resources.memory_gib_per_worker:
        per_worker["memory"] = resources.memory_gib_per_worker * 1024**3
    use_gpu = resources.gpus_per_worker > 0
    failure = ray.remote(_Failure).options(num_cpus=0).remote()
    trainer = TorchTrainer(
        _worker(job, manager, board, failure),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=use_gpu, resources_per_worker=per_worker
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=_RESTARTS),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        _raise_told(failure)
        raise UmbraError(
            f"training failed with {type(error).__name__}; the reason may hold private values and "
            "stays in Ray's own logs. `umbra resume` goes on from the last checkpoint"
        ) from None
    _raise_told(failure)


def _raise_told(failure: Any) -> None:
    told = answer(failure.read.remote())
    if told is not None:
        raise told


class _Failure:
    """Carries the error meant for users past Ray Train, which turns it into a stack trace."""

    def __init__(self) -> None:
        self._error: UmbraError | None = None

    def tell(self, error: UmbraError) -> None:
        self._error = error

    def read(self) -> UmbraError | None:
        return self._error


def _worker(job: TrainingJob, manager: Any, board: Any, failure: Any) -> Callable[[], None]:
    """Return the function that every worker runs."""

    def work() -> None:
        try:
            _train_here(job, manager, board)
        except UmbraError as error:
            # A refusal is final: workers that Ray restarted would only be refused again, so this
            # one ends as if all were well and the driver raises what it was told.
            answer(failure.tell.remote(error))

    return work


def _train_here(job: TrainingJob, manager: Any, board: Any) -> None:
    collective: Collective = ProcessGroup() if torch.distributed.is_initialized() else Alone()
    torch.set_num_threads(max(1, int(job.spec.resources.cpus_per_worker)))
    device = torch.device("cuda" if job.spec.resources.gpus_per_worker > 0 else "cpu")
    first = collective.rank == 0
    number = answer(manager.next_attempt.remote(job.reservation_id)) if first else 0
    attempt = Attempt.start(number, job.run_key, job.spec.privacy.seed, collective)
    trainer = Trainer(
        job.training,
        build_denoiser(job.spec).to(device),
        _load(job, device),
        attempt,
        ActorMeter(manager, job.reservation_id, attempt.number),
        job.checkpoints,
        collective,
        (lambda phase, done, total: board.tell.remote(phase, done)) if first else _ignore,
    )
    weights = trainer.run()
    _require_steps(job.checkpoints)
    if first:
        job.weights.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(job.weights, to_safetensors({k: v.cpu() for k, v in weights.items()}))


def _require_steps(checkpoints: Path) -> None:
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
    loaded = data.source.load(data.size, data.channels, data.classes)
    if fingerprint(loaded.images, loaded.labels, job.run_key) != job.content:
        raise DataError(
            f"the data set {data.name!r} is not the one that the budget was reserved for: it "
            "changed since this run was submitted. Restore it, or submit a new run."
        )
    return Records.from_uint8(loaded.images, loaded.labels, device)
