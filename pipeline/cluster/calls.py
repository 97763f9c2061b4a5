"""What passes between processes when a call fails: words for a user, never a stack trace.

A trace, and an unforeseen error's own text, may hold private values. Ray would carry both into its
logs, its dashboard and the driver's terminal, so they are taken off where they arise and kept in
the run's `internal/` folder.
"""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError

from privacy.errors import UmbraError
from synth.storage import write_bytes


class WorkerFailed(UmbraError):
    """Something unforeseen went wrong in a worker; the text tells its type and no more."""


@contextmanager
def contained(traces: Path) -> Iterator[None]:
    """Let no error out of a worker but those that are written for users.

    Args:
        traces: folder (internal) that the trace of any other error is written to.

    Raises:
        UmbraError: as it was raised in the block.
        WorkerFailed: in place of any other error.
    """
    try:
        yield
    except UmbraError:
        raise
    except Exception as error:
        raise WorkerFailed(
            f"a worker failed with {type(error).__name__}; {_kept(traces)}. `umbra resume` goes on "
            "from what is durable"
        ) from None


def answer(reference: Any) -> Any:
    """Wait for one reference, or a list of them, and return what it holds.

    Errors meant for users arrive as they were raised and not as Ray wraps them; of any other only
    its type is told.

    Raises:
        UmbraError: as the worker raised it, or with the type of what went wrong there.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UmbraError):
            raise cause from None
        raise WorkerFailed(f"a worker failed with {type(cause).__name__}") from None
    except (RayActorError, WorkerCrashedError) as error:
        raise WorkerFailed(
            f"a worker process died ({type(error).__name__}): out of memory, or killed; "
            "`umbra resume` goes on from what is durable"
        ) from None


def _kept(traces: Path) -> str:
    """Write the trace of the error being handled; return where it is, in words."""
    file = traces / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    try:
        write_bytes(file, traceback.format_exc().encode())
    except Exception:
        return "its trace could not be written"
    return f"its trace is in {file} (it may hold private values: do not share it)"
