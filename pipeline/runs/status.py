"""The status of a run now, as far as it can be known from here: its state may be outdated.

A process is looked up on its own machine; a Ray job is asked for at its cluster; a process on
another machine leaves a heartbeat in the run's folder.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.progress import duration, run_periodically
from pipeline.runs.directory import RayJob, RunDirectory, RunState
from privacy.errors import UmbraError

if TYPE_CHECKING:
    from pipeline.cluster.jobs import JobReport, Jobs

SECONDS = 5.0  # between two heartbeats
SILENT = 120.0  # seconds without one: clocks differ a little, and shared folders are slow
_BEAT, _STOP = "alive", "stop-asked"


@contextmanager
def heartbeat(run: RunDirectory) -> Iterator[None]:
    """Touch the run's heartbeat file during the block; raise SIGTERM in it on a stop request."""
    stop, beat = run.path / _STOP, run.path / _BEAT
    stop.unlink(missing_ok=True)  # meant for an earlier process
    beat.touch()

    def touch() -> None:
        # A full disk or a folder out of reach for a while ends no training.
        with suppress(OSError):
            os.utime(beat)
            if stop.exists():
                stop.unlink()
                os.kill(os.getpid(), signal.SIGTERM)

    with run_periodically(touch, SECONDS):
        yield


def seconds_since_heartbeat(run: RunDirectory) -> float | None:
    """Return the seconds since the last heartbeat, by this machine's clock; None without one."""
    try:
        return max(0.0, time.time() - (run.path / _BEAT).stat().st_mtime)
    except OSError:
        return None


def request_stop(run: RunDirectory) -> None:
    """Ask the process that works on the run, on whatever machine, to stop as by SIGTERM."""
    (run.path / _STOP).touch()


StatusName = Literal[
    "created", "queued", "running", "silent", "interrupted", "failed", "cancelled", "done"
]
AskJob = Callable[[RayJob], "JobReport"]

_DIED = "it was killed or lost its machine before it could say why; what was charged stays charged"


@dataclass(frozen=True)
class RunStatus:
    """A run's status and the reason for it."""

    # "queued" waits for a cluster, "interrupted" died at work; whether "silent" runs is unknown.
    status: StatusName
    reason: str = ""

    @property
    def is_active(self) -> bool:
        """Whether the run may still advance by itself."""
        return self.status in {"queued", "running"}


class JobClient:
    """Asks clusters for their jobs over one connection each; tries no cluster twice in vain."""

    def __init__(self) -> None:
        self._jobs: dict[str, Jobs | UmbraError] = {}

    def __call__(self, job: RayJob) -> "JobReport":
        """Return what the job's cluster reports; raises UmbraError if it cannot be reached."""
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


def run_status(run: RunDirectory, ask: AskJob | None = None) -> RunStatus:
    """Find out the status of `run`; `ask` returns a cluster's report on a job, or connects anew.

    Raises:
        IntegrityBroken: the run's state is damaged.
    """
    state = run.state()
    if state.status == "created" and state.job is not None:
        return _submitted(run, state.job, ask or JobClient())
    if state.status == "running":
        return _at_work(run, state, ask or JobClient())
    return RunStatus(state.status, state.message)


def _submitted(run: RunDirectory, job: RayJob, ask: AskJob) -> RunStatus:
    """Return the status of a run whose job has not started it yet."""
    try:
        report = ask(job)
    except UmbraError as error:
        return RunStatus("silent", f"{job} was to start it; {error}")
    if run.state().status != "created":  # it started meanwhile
        return run_status(run, ask)
    match report.status:
        case "pending":
            return RunStatus("queued", f"{job} waits for its turn: {report.message}")
        case "running":
            return RunStatus("queued", f"{job} is about to start it")
        case "stopped":
            return RunStatus("cancelled", f"{job} was stopped before it started the run")
        case "gone":
            why = "the cluster does not know it, or no longer: was it restarted?"
        case _:
            # By far the commonest reason: the job sees another folder of that name.
            why = f"{report.message}. UMBRA_HOME must be the same folder there as here"
    return RunStatus("failed", f"{job} ended before it started the run: {why}")


def _at_work(run: RunDirectory, state: RunState, ask: AskJob) -> RunStatus:
    process, job = state.process, state.job
    if process is not None and process.is_local():
        return _running(state) if process.is_alive() else _died(f"process {process.pid}")
    where = f"on {process.host}" if process is not None else ""
    if job is None:
        return _by_heartbeat(run, state, where)
    try:
        report = ask(job)
    except UmbraError as error:
        return _by_heartbeat(run, state, f"as {job}, whose cluster does not answer ({error})")
    if not report.over:
        return _running(state, f"as {job} {where}")
    if run.state().status != "running":  # it ended meanwhile
        return run_status(run, ask)
    ended = "is gone from its cluster" if report.status == "gone" else f"was {report.status}"
    return _died(f"{job} {ended}; its process")


def _running(state: RunState, where: str = "") -> RunStatus:
    if state.waiting:
        return RunStatus("queued", state.waiting)
    return RunStatus("running", where.strip())


def _died(who: str) -> RunStatus:
    return RunStatus("interrupted", f"{who} died: {_DIED}")


def _by_heartbeat(run: RunDirectory, state: RunState, where: str) -> RunStatus:
    silent = seconds_since_heartbeat(run)
    if silent is not None and silent < SILENT:
        return _running(state, f"{where}, last heartbeat {duration(silent)} ago")
    since = "no heartbeat" if silent is None else f"no heartbeat for {duration(silent)}"
    return RunStatus(
        "silent", f"it ran {where}: {since}. It died, or its machine is cut off from this folder"
    )
