"""Private training on a group of Ray actors; every step is `synth.training`'s.

Each start of the workers is a new attempt that charges for itself: whoever runs them again decides
nothing about what was spent. Nothing that is computed depends on how many there are, so their
number may be another at every start.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch.distributed import TCPStore

from pipeline.cluster import actor_group, budget_actor, calls, connection
from pipeline.plan import build_method
from pipeline.runs.dataset_identity import TRAIN, DatasetIdentity, read_partition
from pipeline.spec import Spec
from privacy.collective import Collective, ProcessGroup, SingleProcess
from privacy.ledger.records import Component
from privacy.records import own
from synth.methods.base import Attempt
from synth.origin import Origin, seal_tensors
from synth.records import Records
from synth.storage import StoragePath, write_bytes


@dataclass(frozen=True)
class TrainingJob:
    """What a training worker works on.

    Attributes:
        spec: the run's spec.
        components: what was reserved and is charged step by step.
        reservation_id: what steps are charged to.
        content: the records that were reserved for; its key, the run's secret, keys the masks too.
        checkpoints: folder for checkpoints (internal).
        traces: folder for the traces of unforeseen errors (internal).
        weights: file for the moving average's weights (released).
        origin: what checkpoints and weights are sealed as.
    """

    spec: Spec
    components: tuple[Component, ...]
    reservation_id: str
    content: DatasetIdentity
    checkpoints: StoragePath
    traces: Path
    weights: StoragePath
    origin: Origin


def training_group(job: TrainingJob, manager: Any) -> actor_group.ActorGroup:
    """Return the workers that the spec asks for, whose `run` is the training from start to end.

    Its progress is the number of steps, of all phases, that are done; `manager` is the budget
    manager's actor.
    """
    resources = job.spec.resources
    return actor_group.ActorGroup(
        "training",
        TrainingWorker,
        (job, manager),
        connection.per_worker(resources),
        size=None if resources.workers == "auto" else resources.workers,
        at_most=build_method(job.spec).extent(job.components).max_workers,
    )


class TrainingWorker:
    """One worker of a training: the actor that `ActorGroup` starts."""

    def __init__(self, job: TrainingJob, manager: Any) -> None:
        self._job = job
        self._manager = manager
        self._steps: dict[str, int] = {}
        self._stopping = Event()
        self._store: TCPStore | None = None
        actor_group.tune_malloc()

    def progress(self) -> int:
        """Return how many steps, of all phases, are done: a public count."""
        return sum(list(self._steps.values()))

    def stop(self) -> None:
        """Have `work` end with a checkpoint as soon as what it has charged is drawn."""
        self._stopping.set()

    def rendezvous(self, size: int) -> tuple[str, int]:
        """Open the store at which `size` workers meet and return its host and port."""
        with calls.sanitize_errors(self._job.traces):
            server, host, port = actor_group.open_rendezvous()
            listening = {"wait_for_workers": False, "master_listen_fd": server.detach()}
            self._store = TCPStore(host, port, size, is_master=True, **listening)  # type: ignore[arg-type]
            return host, port

    def work(self, rank: int, size: int, address: tuple[str, int] | None) -> None:
        """Train to the end of the reservation and, on rank 0, write the weights.

        Raises:
            Stopped: `stop` was called.
            UmbraError: another error meant for users, as it was raised.
            WorkerFailed: any other.
        """
        job, resources = self._job, self._job.spec.resources
        with calls.sanitize_errors(job.traces), self._joined(rank, size, address) as collective:
            torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
            device = torch.device("cuda" if resources.gpus_per_worker > 0 else "cpu")
            number, seed = 0, job.spec.privacy.seed
            if rank == 0:
                number = budget_actor.begin_attempt(self._manager, job.reservation_id)
            attempt = Attempt.start(number, job.content.key, seed, collective, job.origin)
            weights = build_method(job.spec).fit(
                load_records(job, attempt, collective, device),
                job.components,
                attempt,
                budget_actor.ActorMeter(self._manager, job.reservation_id, attempt.number),
                job.checkpoints,
                collective,
                self._count_steps,
                self._stopping.is_set,
            )
            if rank == 0:
                data = to_safetensors({name: tensor.cpu() for name, tensor in weights.items()})
                write_bytes(job.weights, seal_tensors(data, job.origin))

    def _count_steps(self, phase: str, done: int, total: int) -> None:
        self._steps[phase] = done

    @contextmanager
    def _joined(
        self, rank: int, size: int, address: tuple[str, int] | None
    ) -> Iterator[Collective]:
        """Join the workers of this training for the block."""
        if address is None:
            yield SingleProcess()
            return
        store = self._store or TCPStore(*address, size, is_master=False)
        backend = _backend(self._job.spec.resources.gpus_per_worker)
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
        yield ProcessGroup()
        # Not after an error: leaving a group of which one member hangs would hang, too, and the
        # driver ends the processes anyway.
        torch.distributed.destroy_process_group()


def _backend(gpus: float) -> str:
    # NCCL refuses two workers on one GPU, and gloo sums tensors on a GPU, too.
    return "nccl" if gpus >= 1 else "gloo"


def load_records(
    job: TrainingJob, attempt: Attempt, collective: Collective, device: torch.device
) -> Records:
    """Read all records, keep those that this worker owns, and verify what was read.

    Raises:
        DataError: they changed since the run was submitted.
    """
    data = job.spec.data
    batches = read_partition(data, TRAIN, job.content)
    owned = own(batches, attempt.key, collective.rank, collective.size, data.records)
    return Records.of(owned, device)
