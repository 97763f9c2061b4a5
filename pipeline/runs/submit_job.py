"""Handing a run to a Ray cluster, which goes on with it as a job of its own."""

from pipeline.home import Home
from pipeline.runs.directory import RunDirectory
from pipeline.runs.state import RayJob
from pipeline.runs.status import run_status
from pipeline.spec.sections import Workers
from privacy.errors import InvalidRequest


def submit_job(
    run: RunDirectory, home: Home, address: str, workers: Workers | None = None
) -> RayJob:
    """Let a cluster go on with a run as a job of its own, and return the job.

    The job works in this home, so its folder has to be the same there.

    Args:
        run: as for `execute`.
        home: where the run is.
        address: of the cluster's Jobs API, `http://host:8265`.
        workers: as for `execute`.

    Raises:
        UmbraError: the Jobs API cannot be reached, lets anybody in, or refused the job; the run
            is as it was, and what it reserved stays reserved.
        InvalidRequest: a process or a job works on the run, or it is done already.
    """
    from pipeline.cluster.jobs import Jobs

    with run.submission_lock():
        now = run_status(run)
        if now.is_active or now.status == "done":
            raise InvalidRequest(
                f"run {run.run_id} is {now.status}{f' ({now.reason})' if now.reason else ''}: it "
                "cannot be handed to a cluster"
            )
        jobs = Jobs(address)
        before = run.state()
        job = RayJob.of(run.run_id, before.jobs + 1, jobs.address)
        # Noted first: a job that nobody knows of could not be cancelled.
        run.update(status="created", process=None, job=job, jobs=before.jobs + 1, message="")
        try:
            jobs.submit(job, run.run_id, home, workers)
        except BaseException:
            run.update(
                status=before.status, process=before.process, job=before.job, message=before.message
            )
            raise
        return job
