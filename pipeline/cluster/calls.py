"""Waiting for Ray: results, errors that carry no private text, and reasons to stop waiting.

A stack trace, or the text of an unforeseen error, may hold private values. Ray would copy both into
its logs, its dashboard and the driver's terminal, so they are removed in the worker that raised
them and kept in the run's `internal/` folder.
"""

import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from privacy.errors import UmbraError
from synth.storage import write_bytes

_SECONDS_BETWEEN_CHECKS = 3.0  # a check asks the cluster or writes to the disk
_GRACE_SECONDS = 20.0
_PAGE = bytes(4096)


class WorkerFailed(UmbraError):
    """An unforeseen error in a worker; the message names its type and nothing else of it."""


class WorkerDied(WorkerFailed):
    """A worker's process, or the machine it ran on, is gone."""


@contextmanager
def sanitize_errors(traces: Path) -> Iterator[None]:
    """Let only errors that are written for users leave the block.

    Args:
        traces: folder (internal) for the trace of any other error.

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
            f"a worker failed with {type(error).__name__}; {_write_trace(traces)}. `umbra resume` "
            "continues from the last durable state"
        ) from None


def _write_trace(traces: Path) -> str:
    """Write the trace of the error being handled; return a phrase that says where it is."""
    file = traces / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    try:
        write_bytes(file, traceback.format_exc().encode())
    except Exception:
        return "its trace could not be written"
    return f"its trace is in {file} (it may hold private values: do not share it)"


def get_result(references: Any) -> Any:
    """Wait for one reference, or a list of them, and return the value or the list of values.

    Raises:
        UmbraError: as the worker raised it, or the reason of an enclosing `abort_when`.
        WorkerFailed: for any other error of the worker.
        WorkerDied: the worker's process or machine is gone.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    several = references if isinstance(references, list) else [references]
    wait(several, num_returns=len(several))
    try:
        return ray.get(references)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UmbraError):
            raise cause from None
        if isinstance(cause, RayError):  # of a call whose result was this one's argument
            raise _died(cause) from None
        raise WorkerFailed(f"a worker failed with {type(cause).__name__}") from None
    except RayError as error:
        raise _died(error) from None


def _died(error: Exception) -> WorkerDied:
    return WorkerDied(
        f"a worker process died ({type(error).__name__}): it ran out of memory or was killed; "
        "`umbra resume` continues from the last durable state"
    )


def wait(
    references: Sequence[Any], timeout: float | None = None, num_returns: int = 1
) -> tuple[list[Any], list[Any]]:
    """Do as `ray.wait` does, and check the conditions of enclosing `abort_when` blocks meanwhile.

    Raises:
        UmbraError: the reason of an `abort_when` block.
    """
    import ray

    end = None if timeout is None else monotonic() + timeout
    while True:
        left = _SECONDS_BETWEEN_CHECKS if end is None else max(0.0, end - monotonic())
        ready, pending = ray.wait(
            list(references), num_returns=num_returns, timeout=min(left, _SECONDS_BETWEEN_CHECKS)
        )
        if len(ready) >= num_returns or (end is not None and monotonic() >= end):
            return ready, pending
        check_abort_conditions()


@dataclass
class _AbortCondition:
    reason: Callable[[], UmbraError | None]
    grace_period: float
    since: float | None = None

    def check(self, now: float) -> None:
        error = self.reason()
        self.since = None if error is None else self.since or now
        if error is not None and self.since is not None and now - self.since >= self.grace_period:
            raise error


# Of this process. Ray waits without end for workers that it can no longer start, so every wait of
# the driver checks these; a worker has none, and ends with its driver.
_conditions: list[_AbortCondition] = []


@contextmanager
def abort_when(
    condition: Callable[[], UmbraError | None], grace_period: float = _GRACE_SECONDS
) -> Iterator[None]:
    """End waits within the block once `condition` has returned an error for `grace_period`.

    An unforeseen error or a `WorkerFailed` that leaves the block while the condition holds is
    replaced by the condition's error, of which it is most likely a consequence.

    Args:
        condition: returns why the block cannot succeed, or None; raises nothing.
        grace_period: seconds in which everything may still end by itself.

    Raises:
        UmbraError: what `condition` returned.
    """
    entry = _AbortCondition(condition, grace_period)
    _conditions.append(entry)
    try:
        yield
    except Exception as error:
        foreseen = isinstance(error, UmbraError) and not isinstance(error, WorkerFailed)
        if not foreseen and (reason := condition()):
            raise reason from None
        raise
    finally:
        _conditions.remove(entry)


def check_abort_conditions() -> None:
    """Raise the error of the first `abort_when` condition that has held for its grace period."""
    now = monotonic()
    for entry in list(_conditions):
        entry.check(now)


def disk_write_error(folder: Path) -> UmbraError | None:
    """Return why nothing can be written, or None: the disk is full or cannot be reached.

    Args:
        folder: of the run, on this machine; the folder for temporary files is tried, too, because
            Ray keeps its files there.
    """
    where = folder
    try:
        _write_page(where)
        where = Path(tempfile.gettempdir())  # raises OSError where no such folder can be used
        _write_page(where)
    except OSError as error:
        return UmbraError(
            f"nothing can be written in {where} ({error.strerror}): free or repair the disk, "
            "then `umbra resume` continues from the last durable state"
        )
    return None


def _write_page(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(_PAGE)


def lost_node_condition() -> Callable[[], UmbraError | None]:
    """Return a condition for `abort_when`: the raylet of this machine has died.

    Ray would let the driver wait for workers that nobody starts any more.
    """
    import ray
    from ray.exceptions import RayError

    here = ray.get_runtime_context().get_node_id()

    def lost() -> UmbraError | None:
        with suppress(RayError):  # a cluster that does not answer says nothing of its machines
            if not any(node["NodeID"] == here and node["Alive"] for node in ray.nodes()):
                return UmbraError(
                    "Ray's raylet on this machine died: it was killed, or the machine was too busy "
                    "to answer. `umbra resume` continues from the last durable state"
                )
        return None

    return lost
