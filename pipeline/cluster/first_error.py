"""Carries the error meant for users past Ray Train, which would turn it into a stack trace."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.cluster.calls import answer
from pipeline.cluster.placement import beside_driver
from privacy.errors import UmbraError

_SECONDS = 1.0  # between two looks
_PATIENCE = 20.0  # seconds that everybody has to end by themselves


class FirstError:
    """Keeps the first error it is told; those that follow are mostly its consequences."""

    def __init__(self) -> None:
        self._error: UmbraError | None = None

    def tell(self, error: UmbraError) -> None:
        """Note an error."""
        self._error = self._error or error

    def read(self) -> UmbraError | None:
        """Return the first error, if there was one."""
        return self._error


def first_error() -> Any:
    """Start the actor; it ends with its last handle."""
    return ray.remote(FirstError).options(num_cpus=0, scheduling_strategy=beside_driver()).remote()


def raise_told(actor: Any) -> None:
    """Raise what the actor was told, if anything."""
    told = answer(actor.read.remote())
    if told is not None:
        raise told


@contextmanager
def ended_when_told(actor: Any, end: Callable[[], None]) -> Iterator[None]:
    """Call `end` if the block still lasts some seconds after the actor was told of an error.

    An error for users is final, but Ray Train starts the workers of a failed group anew, to hear it
    again; where none can be started, on a full disk for one, it would try for ever.
    """
    left = threading.Event()

    def watch() -> None:
        while not left.wait(_SECONDS):
            # An actor that cannot be asked was told of nothing that we know of.
            with suppress(RayError):
                if ray.get(actor.read.remote()) is None:
                    continue
                if not left.wait(_PATIENCE):
                    end()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
