"""How far a training is, told by its workers and read by whoever shows it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.cluster.placement import beside_driver
from pipeline.progress import Stage

_SECONDS = 0.5


class ProgressBoard:
    """Holds the newest count of every phase; counts of steps are public."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}

    def tell(self, phase: str, done: int) -> None:
        """Note that `done` units of `phase` are done."""
        self._done[phase] = done

    def read(self) -> dict[str, int]:
        """Return the counts by phase."""
        return dict(self._done)


def progress_board() -> Any:
    """Start a board; it ends with its last handle."""
    return (
        ray.remote(ProgressBoard).options(num_cpus=0, scheduling_strategy=beside_driver()).remote()
    )


@contextmanager
def shown(board: Any, stage: Stage) -> Iterator[None]:
    """Show the sum of all phases on `stage` while the block waits for the training."""
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(_SECONDS):
            # A board that died takes no training with it, nor a trace to the terminal.
            with suppress(RayError):
                stage.reach(sum(ray.get(board.read.remote()).values()))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
