"""A process of its own that is what a training worker is, for what training does.

A worker keeps the memory that it frees, which makes the non-private step faster too: both sides of
a ratio are measured in the same such process.
"""

import logging
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

from pipeline.cluster.freed_memory import keep_freed_memory

T = TypeVar("T")


def in_a_worker(function: Callable[[], T]) -> T:
    """Call a function in such a process; it and what it returns must be such as can be pickled."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=_as_a_worker) as pool:
        return pool.submit(function).result()


def set_up() -> None:
    """Set this process up for measuring steps."""
    # Opacus warns of its own hooks on every backward pass.
    warnings.filterwarnings("ignore")
    logging.getLogger("opacus").setLevel(logging.ERROR)
    # A GPU's convolutions would round to 10 bits: too far apart to be checked against each other.
    torch.backends.cudnn.allow_tf32 = False


def _as_a_worker() -> None:
    set_up()
    keep_freed_memory()
