"""Carries the error meant for users past Ray Train, which would turn it into a stack trace."""

from typing import Any

import ray

from pipeline.cluster.calls import answer
from privacy.errors import UmbraError


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
    return ray.remote(FirstError).options(num_cpus=0).remote()


def raise_told(actor: Any) -> None:
    """Raise what the actor was told, if anything."""
    told = answer(actor.read.remote())
    if told is not None:
        raise told
