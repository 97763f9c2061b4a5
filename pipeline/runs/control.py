"""Control of a run from outside: submit it as a job, cancel it, give it up for good."""

import os
import signal
from contextlib import suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING

from pipeline.home import Home
from pipeline.runs.dataset_identity import TRAIN
from pipeline.runs.directory import RayJob, RunDirectory
from pipeline.runs.ingest import give_back
from pipeline.runs.ledger_access import open_budget, record_head
from pipeline.runs.status import request_stop, run_status
from privacy.budget import Settlement
from privacy.errors import InvalidRequest, UmbraError

if TYPE_CHECKING:
    from pipeline.spec import Workers

_STOP_SECONDS, _POLL = 60.0, 0.5  # Ray kills a job that does not stop before that
CANCELLED = "cancelled; `umbra resume` goes on"
GIVEN_UP = "given up: what was never charged went back to the budget"


def submit_job(
    run: RunDirectory, home: Home, address: str, workers: "Workers | None" = None
) -> RayJob:
    """Submit a run to the Jobs API at `address`, and return the job that will execute it.

    The job works in this home, so its folder has to be the same there.

    Raises:
        UmbraError: the Jobs API cannot be reached, admits anybody, or refused the job; the run
            is as it was, and what it reserved stays reserved.
        InvalidRequest: a process or a job works on the run, or it is done already.
    """
    from pipeline.cluster.jobs import Jobs

    with run.submission_lock():
        now = run_status(run)
        if now.is_active or now.status == "done":
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
        request_stop(run)
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
    end = monotonic() + _STOP_SECONDS
    while not jobs.report(job).over and monotonic() < end:
        sleep(_POLL)
    # A job that was killed or never started did not record that itself; one at work has the lock.
    with suppress(InvalidRequest), run.lock():
        if run.state().status in {"created", "running"}:
            run.update(status="cancelled", process=None, message=CANCELLED)
    return True


def give_up(run: RunDirectory, home: Home) -> Settlement:
    """Settle a run that will not be resumed, and return the settlement of its training.

    What was never charged goes back to the budget, also to that of the holdout.

    Raises:
        InvalidRequest: another process works on the run, or it is done, or never reserved.
        LedgerUnavailable: the ledger cannot be reached; nothing was given back.
    """
    with run.lock():
        state = run.state()
        settled = {} if state.status == "done" else give_back(run, open_budget(home))
        if TRAIN not in settled:
            raise InvalidRequest(f"run {run.run_id} is {state.status}: nothing to give back")
        for settlement in settled.values():
            record_head(run, settlement.head)
        run.update(status="cancelled", process=None, message=GIVEN_UP)
        if state.mlflow_run_id is not None:
            _end_in_mlflow(run, home, state.mlflow_run_id)
        return settled[TRAIN]


def _end_in_mlflow(run: RunDirectory, home: Home, mlflow_run_id: str) -> None:
    """End the MLflow run of a process that was killed and could not do it itself."""
    from pipeline.tracking.tracker import Ended, Tracker, TrackingUnavailable

    # The budget is back whether MLflow can be reached or not.
    with suppress(TrackingUnavailable):
        tracker = Tracker(home.mlflow_uri, home.artifacts)
        tracker.reopen(mlflow_run_id, run.release).finish(Ended.KILLED)
