"""Waiting for Ray: results, errors without private text, what is waited for, and when to stop.

A stack trace, or the text of an unforeseen error, may hold private values. Ray would copy both into
its logs, its dashboard and the driver's terminal, so they are removed in the worker that raised
them and kept in the run's `internal/` folder.
"""

import math
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from pipeline.progress import run_periodically
from privacy.errors import UmbraError
from synth.storage import write_bytes

_SECONDS_BETWEEN_CHECKS = 3.0  # a check asks the cluster or writes to the disk
_GRACE_SECONDS = 20.0
_ROOM_SECONDS = 8.0  # after which a wait for room is reported, and between two reports
_RESUME = "`umbra resume` continues from the last durable state"


class WorkerFailed(UmbraError):
    """An unforeseen error in a worker; the message names its type and nothing else of it."""


class WorkerDied(WorkerFailed):
    """A worker's process, or the machine it ran on, is gone."""


@contextmanager
def sanitize_errors(traces: Path) -> Iterator[None]:
    """Let only errors that are written for users leave the block.

    The trace of any other error is written to the folder `traces`, which is internal.

    Raises:
        UmbraError: as it was raised in the block.
        WorkerFailed: in place of any other error.
    """
    try:
        yield
    except UmbraError:
        raise
    except Exception as error:
        file = traces / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.txt"
        where = f"its trace is in {file} (it may hold private values: do not share it)"
        try:
            write_bytes(file, traceback.format_exc().encode())
        except Exception:
            where = "its trace could not be written"
        raise WorkerFailed(
            f"a worker failed with {type(error).__name__}; {where}. {_RESUME}"
        ) from None


def get_result(reference: Any) -> Any:
    """Wait for a reference and return its value.

    Raises:
        UmbraError: as the worker raised it, or the reason of an enclosing `abort_when`.
        WorkerFailed: for any other error of the worker.
        WorkerDied: the worker's process or machine is gone.
    """
    import ray

    wait([reference])
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        # The cause is Ray's own error, too, for a call whose argument was another one's result.
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if isinstance(cause, UmbraError):
        raise cause from None
    if not isinstance(cause, ray.exceptions.RayError):
        raise WorkerFailed(f"a worker failed with {type(cause).__name__}")
    raise WorkerDied(
        f"a worker process died ({type(cause).__name__}): it ran out of memory or was killed; "
        f"{_RESUME}"
    )


def wait(references: Sequence[Any], timeout: float | None = None) -> tuple[list[Any], list[Any]]:
    """Do as `ray.wait` does for one reference, and check `abort_when` conditions meanwhile.

    Raises:
        UmbraError: the reason of an `abort_when` block.
    """
    import ray

    end = math.inf if timeout is None else monotonic() + timeout
    while True:
        left = min(_SECONDS_BETWEEN_CHECKS, max(0.0, end - monotonic()))
        ready, pending = ray.wait(list(references), timeout=left)
        if ready or monotonic() >= end:
            return ready, pending
        check_abort_conditions()


# Of this process. Ray waits without end for workers that it can no longer start, so every wait of
# the driver checks these; a worker has none, and ends with its driver.
_conditions: list[Callable[[], None]] = []


@contextmanager
def abort_when(
    condition: Callable[[], UmbraError | None], grace_period: float = _GRACE_SECONDS
) -> Iterator[None]:
    """End waits within the block once `condition` has returned an error for `grace_period` seconds.

    Raises:
        UmbraError: what `condition` returned; it itself raises nothing.
    """
    since: float | None = None

    def check() -> None:
        nonlocal since
        error = condition()
        since = None if error is None else since or monotonic()
        if error is not None and since is not None and monotonic() - since >= grace_period:
            raise error

    _conditions.append(check)
    try:
        yield
    except Exception as error:
        # An unforeseen error is most likely a consequence of the condition, if that holds.
        foreseen = isinstance(error, UmbraError) and not isinstance(error, WorkerFailed)
        if not foreseen and (reason := condition()):
            raise reason from None
        raise
    finally:
        _conditions.remove(check)


def check_abort_conditions() -> None:
    """Raise the error of the first `abort_when` condition that has held for its grace period."""
    for check in list(_conditions):
        check()


_room_reports: list[Callable[[str], object]] = []


@contextmanager
def report_waiting(report: Callable[[str], object]) -> Iterator[None]:
    """Within the block, report what this driver waits for; "" once it has its room."""
    _room_reports.append(report)
    try:
        yield
    finally:
        _room_reports.remove(report)


@contextmanager
def waiting_for_room(what: str, each: Mapping[str, float]) -> Iterator[None]:
    """Report, if the block takes long, that there is no room for `what`; `each` in Ray's names."""
    import ray

    # Not the memory, which Ray counts in bytes.
    kinds = {kind: size for kind, size in each.items() if kind in ("CPU", "GPU") and size > 0}
    asked = " and ".join(f"{size:g} {kind}" for kind, size in kinds.items())
    reported: set[Callable[[str], object]] = set()

    def report() -> None:
        with suppress(Exception):  # a cluster that is busy does not answer; the run continues
            free, total = ray.available_resources(), ray.cluster_resources()
            room = ", ".join(f"{free.get(k, 0):g} of {total.get(k, 0):g} {k}" for k in kinds)
            for show in _room_reports:
                show(f"it waits for room for {what} with {asked} each; {room} free on the cluster")
                reported.add(show)

    try:
        with run_periodically(report, _ROOM_SECONDS):
            yield
    finally:
        for show in reported:
            with suppress(UmbraError):  # a note that cannot be written ends no training
                show("")


def disk_write_error(folder: Path) -> UmbraError | None:
    """Return why nothing can be written, or None: the disk of a run's folder, or of Ray's files."""
    where = folder
    try:
        _write_page(where)
        # Raises OSError, too, where no temporary folder can be used.
        where = Path(tempfile.gettempdir())
        _write_page(where)
    except OSError as error:
        return UmbraError(
            f"nothing can be written in {where} ({error.strerror}): free or repair the disk, "
            f"then {_RESUME}"
        )
    return None


def is_writable(folder: Path) -> bool:
    """Whether something can be written in a folder now."""
    with suppress(OSError):
        _write_page(folder)
        return True
    return False


def _write_page(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))


def lost_node_condition() -> Callable[[], UmbraError | None]:
    """Return a condition for `abort_when`: the raylet of this machine has died."""
    import ray

    here = ray.get_runtime_context().get_node_id()

    def lost() -> UmbraError | None:
        # A cluster that does not answer says nothing of its machines.
        with suppress(ray.exceptions.RayError):
            if not any(node["NodeID"] == here and node["Alive"] for node in ray.nodes()):
                return UmbraError(
                    "Ray's raylet on this machine died: it was killed, or the machine was too busy "
                    f"to answer. {_RESUME}"
                )
        return None

    return lost
