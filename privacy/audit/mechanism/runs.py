"""Starts of the audited path on toy data."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from privacy.audit.mechanism.toy import Toy, mean_output
from privacy.collective import Collective, SingleProcess
from privacy.dp_sgd import PrivateGradient
from privacy.gradients import ENGINES, GradientEngine
from privacy.keystream import os_key
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler


@dataclass(frozen=True)
class StepPath:
    """What an audit runs: everything between a record and the noised mean gradient.

    The defaults are what training uses. Another part in the place of one of them is audited as if
    it shipped.

    Attributes:
        key: the secret of one start of a run, which all its workers share.
        sampler: from (key, attempt, q), the batches of one attempt.
        noise: a worker's noise stream, called anew on every worker of every start.
        engine: how clipped gradients are computed; audit the one that training chooses.
        step: as `PrivateGradient`, which puts the others together.
    """

    key: Callable[[], bytes] = os_key
    sampler: Callable[[bytes, int, float], PoissonSampler] = PoissonSampler
    noise: Callable[[], SecureGaussian] = SecureGaussian
    engine: GradientEngine = ENGINES["record"]
    step: Callable[..., PrivateGradient] = PrivateGradient


_PATIENCE = 60.0  # seconds that a worker waits for the others

T = TypeVar("T")


class _Shared:
    """What the workers of one start have in common."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.slots: list[Any] = [None] * size
        # Only one works at a time: torch holds some switches for a whole process, and what is
        # audited is not how threads get on with each other.
        self.turn = threading.Lock()


class _Worker:
    """One worker's view of the others: a `Collective`."""

    def __init__(self, rank: int, size: int, shared: _Shared) -> None:
        self.rank = rank
        self.size = size
        self._shared = shared

    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums, added in the order of ranks on every worker alike."""
        first, *others = self._exchange(tensors)
        return {name: sum((part[name] for part in others), first[name]) for name in tensors}

    def broadcast_from_rank0(self, value: int) -> int:
        """Return the value of rank 0."""
        return int(self._exchange(value)[0])

    def _exchange(self, value: Any) -> list[Any]:
        shared = self._shared
        shared.slots[self.rank] = value
        shared.turn.release()
        try:
            shared.barrier.wait(_PATIENCE)
            values = list(shared.slots)
            # Nobody may write again before all have read.
            shared.barrier.wait(_PATIENCE)
        finally:
            shared.turn.acquire()
        return values


def run_workers(size: int, work: Callable[[Collective], T]) -> list[T]:
    """Call `work` on `size` workers that are joined by a collective; return results by rank.

    Raises:
        Exception: what the first worker to fail raised.
        threading.BrokenBarrierError: where workers did not meet: not all asked for the same sums.
    """
    if size == 1:
        return [work(SingleProcess())]
    shared = _Shared(size)

    def guarded(rank: int) -> T:
        with shared.turn:
            try:
                return work(_Worker(rank, size, shared))
            except BaseException:
                # The others would wait for this worker in vain.
                shared.barrier.abort()
                raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(guarded, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception())]
    # A broken barrier is the others' answer to the first error, which is the one to show.
    errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


_MICRO_BATCH = 3  # less than an ordinary batch, so that batches are put together from parts


@dataclass(frozen=True)
class Outcome:
    """What starts gave.

    Attributes:
        gradients: float64 [starts, steps, layers, width] as rank 0 holds them, 0 for what is not
            finite.
        finite: whether all of them were finite.
        agreed: whether every worker of every start held the same.
    """

    gradients: np.ndarray
    finite: bool
    agreed: bool


def run(
    path: StepPath,
    toy: Toy,
    *,
    workers: int,
    keys: list[bytes],
    steps: int,
    present: np.ndarray,
    records: Tensor | None = None,
    attempt: int = 1,
) -> Outcome:
    """Begin a training once for every key and take `steps` steps of each.

    Args:
        path: what is audited.
        toy: records and network.
        workers: how many share the records.
        keys: of the starts; each has its own noise besides.
        steps: taken in each.
        present: int64, ids of the records that are there; the others are zeroed out.
        records: other views than the toys' own.
        attempt: number of the attempt.
    """
    data = toy.records if records is None else records

    def work(collective: Collective) -> np.ndarray:
        owned = present[present % collective.size == collective.rank]

        def gather(positions: np.ndarray) -> tuple[Tensor, ...]:
            return (data[owned[positions]],)

        def take(key: bytes) -> np.ndarray:
            sampler = path.sampler(key, attempt, toy.dpsgd.sampling_probability)
            gradient = path.step(
                toy.dpsgd, sampler, path.noise(), path.engine, collective, _MICRO_BATCH
            )
            taken = [gradient(step, toy.model, mean_output, owned, gather) for step in range(steps)]
            return np.stack([np.stack([part.numpy() for part in one.values()]) for one in taken])

        return np.stack([take(key) for key in keys])

    found, *others = run_workers(workers, work)
    agreed = all(np.array_equal(found, other, equal_nan=True) for other in others)
    finite = np.isfinite(found)
    return Outcome(np.where(finite, found, 0.0), bool(finite.all()), agreed)
