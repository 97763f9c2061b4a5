"""The status of a run now, as far as it can be known from here, and its control from outside.

A run's state may be outdated. A process is looked up on its own machine; a Ray job is asked for at
its cluster; a process on another machine leaves a heartbeat in the run's folder.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.home import Home
from pipeline.progress import duration, run_periodically
from pipeline.runs.directory import GIVEN_UP_WORDS, RayJob, RunDirectory, RunState
from privacy.errors import InvalidRequest, UmbraError

if TYPE_CHECKING:
    from pipeline.cluster.jobs import JobReport, Jobs
    from pipeline.spec import Workers
    from privacy.budget import Settlement

SECONDS = 5.0  # between two heartbeats
SILENT = 120.0  # seconds without one: clocks differ a little, and shared folders are slow
_BEAT, _STOP = "alive", "stop-asked"
_START_POLL = 0.2
_STOP_SECONDS, _POLL = 60.0, 0.5  # Ray kills a job that does not stop before that
CANCELLED = "cancelled; `umbra resume` goes on"
GIVEN_UP = f"{GIVEN_UP_WORDS}: what was never charged went back to the budget"


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


StatusName = Literal[
    "created", "queued", "running", "silent", "interrupted", "failed", "cancelled", "done"
]
AskJob = Callable[[RayJob], "JobReport"]


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
    why = "it was killed or lost its machine before it could say why"
    return RunStatus("interrupted", f"{who} died: {why}; what was charged stays charged")


def _by_heartbeat(run: RunDirectory, state: RunState, where: str) -> RunStatus:
    silent = seconds_since_heartbeat(run)
    if silent is not None and silent < SILENT:
        return _running(state, f"{where}, last heartbeat {duration(silent)} ago")
    since = "no heartbeat" if silent is None else f"no heartbeat for {duration(silent)}"
    return RunStatus(
        "silent", f"it ran {where}: {since}. It died, or its machine is cut off from this folder"
    )


def require_unfinished(run: RunDirectory) -> None:
    """Raise InvalidRequest on a run that is done or was given up: it cannot be resumed."""
    state = run.state()
    if state.is_given_up:
        raise InvalidRequest(
            f"run {run.run_id} was given up, and what it never charged went back to the budget: "
            "submit its spec as a new run"
        )
    if state.status == "done":
        raise InvalidRequest(f"run {run.run_id} is done: there is nothing left to do")


def submit_job(
    run: RunDirectory, home: Home, address: str, workers: "Workers | None" = None
) -> RayJob:
    """Submit a run to the Jobs API at `address`, and return the job that will execute it.

    The job works in this home, so its folder has to be the same there.

    Raises:
        UmbraError: the Jobs API cannot be reached, admits anybody, or refused the job; the run
            is as it was, and what it reserved stays reserved.
        InvalidRequest: a process or a job works on the run, or it is done or given up.
    """
    from pipeline.cluster.jobs import Jobs

    with run.submission_lock():
        require_unfinished(run)
        now = run_status(run)
        if now.is_active:
            raise InvalidRequest(
                f"run {run.run_id} is {now.status}{f' ({now.reason})' if now.reason else ''}: it "
                "cannot be submitted to a cluster"
            )
        jobs = Jobs(address)
        before = run.state()
        job = RayJob.of(run.run_id, before.jobs + 1, jobs.address)
        # Recorded first: a job that the run does not know of could not be cancelled.
        change = {"status": "created", "process": None, "job": job, "message": ""}
        run.update(**change, jobs=before.jobs + 1)
        try:
            jobs.submit(job, run.run_id, home, workers)
        except BaseException:
            run.update(**{name: getattr(before, name) for name in change})
            raise
        return job


def start_process(run: RunDirectory, address: str | None, workers: "Workers | None") -> None:
    """Execute `run` in a process that outlives this terminal; return when the run has started.

    Raises:
        UmbraError: it ended before that; what was reserved stays reserved.
    """
    # Its output goes to the run's log: an error before the run began has no other place.
    # Whoever started it has accepted already what was forfeited.
    command = [sys.executable, "-m", "pipeline.cli.main", "resume", run.run_id, "--json", "--yes"]
    if address:
        command += ["--address", address]
    if workers is not None:
        command += ["--workers", str(workers)]
    attempt = run.state().attempt
    with run.log_path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    while run.state().attempt == attempt:
        if process.poll() is not None:
            raise UmbraError(
                f"run {run.run_id} did not start: `umbra logs {run.run_id}` says why. Its budget "
                f"stays reserved; start it with `umbra resume {run.run_id}`."
            )
        time.sleep(_START_POLL)


def cancel(run: RunDirectory) -> bool:
    """Stop whatever works on a run, or is to; return whether there was anything to stop.

    A process on another machine is asked through the run's folder and stops some seconds later.
    What was only reserved stays reserved: the run can be resumed, or given up.

    Raises:
        UmbraError: the process is another user's, or the job's cluster cannot be reached.
    """
    state = run.state()
    if state.is_live() and state.process is not None:
        return _stop_process(run, state.process.pid)
    if state.status not in {"created", "running"}:
        return False
    if state.job is not None:
        return _stop_job(run, state.job)
    if state.process is not None and not state.process.is_local():
        (run.path / _STOP).touch()
        return True
    return False


def _stop_process(run: RunDirectory, pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGTERM)
        return True
    except ProcessLookupError:
        return False
    except PermissionError:
        raise UmbraError(
            f"process {pid}, which works on run {run.run_id}, belongs to another user: ask them to "
            "cancel it"
        ) from None


def _stop_job(run: RunDirectory, job: RayJob) -> bool:
    from pipeline.cluster.jobs import Jobs

    jobs = Jobs(job.address)
    if jobs.report(job).over:
        return False
    jobs.stop(job)
    end = time.monotonic() + _STOP_SECONDS
    while not jobs.report(job).over and time.monotonic() < end:
        time.sleep(_POLL)
    # A job that was killed or never started did not record that itself; one at work has the lock.
    with suppress(InvalidRequest), run.lock():
        if run.state().status in {"created", "running"}:
            run.update(status="cancelled", process=None, message=CANCELLED)
    return True


def give_up(run: RunDirectory, home: Home) -> "Settlement":
    """Settle a run that will not be resumed, and return the settlement of its training.

    What was never charged goes back to the budget, also to that of the holdout.

    Raises:
        InvalidRequest: another process works on the run, or it is done, or never reserved.
        LedgerUnavailable: the ledger cannot be reached; nothing was given back.
    """
    from pipeline.runs.ingest import TRAIN, give_back
    from pipeline.runs.ledger_access import open_budget, record_head

    with run.lock():
        state = run.state()
        settled = {} if state.status == "done" else give_back(run, open_budget(home))
        if TRAIN not in settled:
            raise InvalidRequest(f"run {run.run_id} is {state.status}: nothing to give back")
        for settlement in settled.values():
            record_head(run, settlement.head)
        run.update(status="cancelled", process=None, message=GIVEN_UP, given_up=True)
        if state.mlflow_run_id is not None:
            _end_in_mlflow(run, home, state.mlflow_run_id)
        return settled[TRAIN]


def _end_in_mlflow(run: RunDirectory, home: Home, mlflow_run_id: str) -> None:
    """End the MLflow run of a process that was killed and could not do it itself."""
    from pipeline.tracking.tracker import Ended, Tracker, TrackingUnavailable

    # The budget is back whether MLflow can be reached or not.
    with suppress(TrackingUnavailable):
        tracker = Tracker(home.mlflow_uri, home.artifacts)
        tracker.reopen(mlflow_run_id, run.release, void=True).finish(Ended.KILLED)
