"""Processes set up like training workers.

A worker keeps the memory that it frees, which makes the non-private step faster too, so both sides
of a ratio are measured in such processes.
"""

import logging
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

from pipeline.cluster.actor_group import tune_malloc

T = TypeVar("T")


class Workers:
    """Processes that run the same call in parallel; a context manager that ends them.

    Attributes:
        count: number of processes.
        threads: torch's threads in each.
    """

    def __init__(self, count: int, threads: int) -> None:
        """Start them with the first call."""
        self.count, self.threads = count, threads
        spawn = multiprocessing.get_context("spawn")
        self._pools = [
            # One pool each: a shared pool might hand two calls to one process.
            ProcessPoolExecutor(1, spawn, initializer=_as_a_worker, initargs=(threads,))
            for _ in range(count)
        ]

    @classmethod
    def of_a_training(cls, device: str) -> "Workers":
        """Return a worker of one thread for each of torch's threads here, or a GPU's only one."""
        threads = torch.get_num_threads()
        return cls(1, threads) if device == "cuda" else cls(threads, 1)

    def __call__(self, function: Callable[..., T], *args: object) -> list[T]:
        """Call a function in every worker, and return their results when all are done.

        The function, what it is given and what it returns must be such as can be pickled. Raises
        what the first one raised.
        """
        return [future.result() for future in [p.submit(function, *args) for p in self._pools]]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        for pool in self._pools:
            pool.shutdown()


def in_a_worker(function: Callable[[], T]) -> T:
    """Call a function in a new worker with as many threads as torch has here."""
    with Workers(1, torch.get_num_threads()) as workers:
        return workers(function)[0]


def set_up() -> None:
    """Set this process up for measuring steps."""
    # Opacus warns of its own hooks on every backward pass.
    warnings.filterwarnings("ignore")
    logging.getLogger("opacus").setLevel(logging.ERROR)
    # TF32 rounds to 10 bits, too coarse to check engines against each other.
    torch.backends.cudnn.allow_tf32 = False


def _as_a_worker(threads: int) -> None:
    set_up()
    torch.set_num_threads(threads)
    tune_malloc()
