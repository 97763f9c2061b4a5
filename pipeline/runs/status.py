"""Where a run stands now, as far as can be known from here: what its state says may be outdated.

A process is looked up on its own machine; a Ray job is asked after at its cluster; of a process on
another machine there are the signs of life that it leaves in the run's folder.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.progress import duration, run_periodically
from pipeline.runs.directory import RunDirectory
from pipeline.runs.state import RayJob, RunState
from privacy.errors import UmbraError

if TYPE_CHECKING:
    from pipeline.cluster.jobs import JobReport, Jobs

SECONDS = 5.0  # between two beats
SILENT = 120.0  # seconds without one: clocks differ a little, and shared folders are slow

_BEAT = "alive"
_STOP = "stop-asked"


@contextmanager
def heartbeat(run: RunDirectory) -> Iterator[None]:
    """Give signs of life during the block; a request to stop arrives in it as SIGTERM."""
    stop, beat = run.path / _STOP, run.path / _BEAT
    stop.unlink(missing_ok=True)  # asked of an earlier process
    beat.touch()

    def look() -> None:
        # A full disk or a folder out of reach for a while ends no training.
        with suppress(OSError):
            os.utime(beat)
            if stop.exists():
                stop.unlink()
                os.kill(os.getpid(), signal.SIGTERM)

    with run_periodically(look, SECONDS):
        yield


def seconds_since_heartbeat(run: RunDirectory) -> float | None:
    """Return the time since the last sign of life, by this machine's clock; None without one."""
    try:
        return max(0.0, time.time() - (run.path / _BEAT).stat().st_mtime)
    except OSError:
        return None


def request_stop(run: RunDirectory) -> None:
    """Ask whoever works on the run, wherever that is, to stop as SIGTERM would."""
    (run.path / _STOP).touch()


StatusName = Literal[
    "created", "queued", "running", "silent", "interrupted", "failed", "cancelled", "done"
]
Ask = Callable[[RayJob], "JobReport"]

_DIED = "it was killed or lost its machine before it could say why; what was charged stays charged"


@dataclass(frozen=True)
class RunStatus:
    """A status as a person means it, and why.

    Beside the states of `RunState`: "queued" waits for a cluster, "interrupted" died at work, and
    "silent" can neither be reached nor told from dead.
    """

    status: StatusName
    reason: str = ""

    @property
    def is_active(self) -> bool:
        """Whether something may still come by itself."""
        return self.status in {"queued", "running"}


class JobClient:
    """Asks clusters after jobs, one connection for each, and gives up on those out of reach."""

    def __init__(self) -> None:
        self._jobs: dict[str, Jobs | UmbraError] = {}

    def __call__(self, job: RayJob) -> "JobReport":
        """Return what the job's cluster says.

        Raises:
            UmbraError: it cannot be reached, or could not a moment ago.
        """
        if job.address not in self._jobs:
            from pipeline.cluster.jobs import Jobs

            try:
                self._jobs[job.address] = Jobs(job.address)
            except UmbraError as error:
                self._jobs[job.address] = error
        known = self._jobs[job.address]
        if isinstance(known, UmbraError):
            raise known
        return known.report(job)


def run_status(run: RunDirectory, ask: Ask | None = None) -> RunStatus:
    """Find out where `run` stands.

    Args:
        run: the run.
        ask: how a cluster is asked after a job; None makes a connection for this once.

    Raises:
        IntegrityBroken: its state is damaged.
    """
    state = run.state()
    if state.status == "created":
        return _submitted(run, state.job, ask or JobClient()) if state.job else RunStatus("created")
    if state.status == "running":
        return _at_work(run, state, ask or JobClient())
    return RunStatus(state.status, state.message)


def _submitted(run: RunDirectory, job: RayJob, ask: Ask) -> RunStatus:
    """Of a run that a job is to begin, and has not."""
    try:
        report = ask(job)
    except UmbraError as error:
        return RunStatus("silent", f"{job} was to begin it; {error}")
    if run.state().status != "created":  # it began while we asked
        return run_status(run, ask)
    if report.status == "pending":
        return RunStatus("queued", f"{job} waits for its turn: {report.words}")
    if report.status == "running":
        return RunStatus("queued", f"{job} is about to begin it")
    if report.status == "stopped":
        return RunStatus("cancelled", f"{job} was stopped before it began the run")
    if report.status == "gone":
        why = "the cluster does not know it, or no longer: was it started anew?"
    else:
        # By far the commonest reason: the job sees another folder of that name.
        why = f"{report.words}. UMBRA_HOME must be the same folder there as here"
    return RunStatus("failed", f"{job} ended before it began the run: {why}")


def _at_work(run: RunDirectory, state: RunState, ask: Ask) -> RunStatus:
    process, job = state.process, state.job
    if process is not None and process.here():
        return _running(state) if process.alive() else _died(f"process {process.pid}")
    where = f"on {process.host}" if process is not None else ""
    if job is None:
        return _by_signs_of_life(run, state, where)
    try:
        report = ask(job)
    except UmbraError as error:
        return _by_signs_of_life(run, state, f"as {job}, which cannot be asked after ({error})")
    if not report.over:
        return _running(state, f"as {job} {where}")
    if run.state().status != "running":  # it ended while we asked
        return run_status(run, ask)
    ended = "is gone from its cluster" if report.status == "gone" else f"was {report.status}"
    return _died(f"{job} {ended}; its process")


def _running(state: RunState, where: str = "") -> RunStatus:
    if state.waiting:
        return RunStatus("queued", state.waiting)
    return RunStatus("running", where.strip())


def _died(who: str) -> RunStatus:
    return RunStatus("interrupted", f"{who} died: {_DIED}")


def _by_signs_of_life(run: RunDirectory, state: RunState, where: str) -> RunStatus:
    silent = seconds_since_heartbeat(run)
    if silent is not None and silent < SILENT:
        return _running(state, f"{where}, last sign of life {duration(silent)} ago")
    since = "no sign of life" if silent is None else f"no sign of life for {duration(silent)}"
    return RunStatus(
        "silent", f"it ran {where}: {since}. It died, or its machine is cut off from this folder"
    )
