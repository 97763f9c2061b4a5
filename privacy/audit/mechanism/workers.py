"""Workers of one process: threads that take turns and meet in a real sum."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torch import Tensor

from privacy.collective import Alone, Collective

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

    def from_first(self, value: int) -> int:
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
        return [work(Alone())]
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
