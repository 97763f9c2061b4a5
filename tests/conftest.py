"""Fixtures that tests of more than one package use."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings

# No test asserts a time: hypothesis would fail an example for taking 200 ms on a busy machine.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")


class _Threads:
    """A collective over the threads of one process: real sums between real, concurrent workers."""

    def __init__(self, rank, size, barrier, slots):
        self.rank, self.size = rank, size
        self._barrier, self._slots = barrier, slots

    def _exchange(self, value):
        self._slots[self.rank] = value
        self._barrier.wait(timeout=60)
        values = list(self._slots)
        self._barrier.wait(timeout=60)
        return values

    def sum(self, tensors):
        values = self._exchange(tensors)
        return {name: sum(part[name] for part in values[1:]) + values[0][name] for name in tensors}

    def from_first(self, value):
        return self._exchange(value)[0]


@pytest.fixture
def run_workers():
    """Call `work(collective)` on `size` workers at once and return what each gave, by rank."""

    def run(size, work):
        barrier, slots = threading.Barrier(size), [None] * size

        def guarded(rank):
            try:
                return work(_Threads(rank, size, barrier, slots))
            except BaseException:
                # The others would wait for this worker for ever.
                barrier.abort()
                raise

        with ThreadPoolExecutor(size) as pool:
            futures = [pool.submit(guarded, rank) for rank in range(size)]
        errors = [error for future in futures if (error := future.exception())]
        # A broken barrier is the others' answer to the first error, which is the one to show.
        errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
        if errors:
            raise errors[0]
        return [future.result() for future in futures]

    return run
