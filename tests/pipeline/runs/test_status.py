"""The status of a run, found out by process, by job and by heartbeat."""

import json
import os
import signal
import threading
import time

import pytest

from pipeline.cluster.jobs import JobReport
from pipeline.runs import control as subject
from pipeline.runs.control import run_status
from pipeline.runs.directory import ProcessIdentity, RayJob
from privacy.errors import UmbraError

GONE = ProcessIdentity(2**22 + 1, "long ago")
ELSEWHERE = ProcessIdentity(7, "today", "another-host")
JOB = RayJob("http://10.0.0.9:8265", "umbra-x-1")


@pytest.fixture
def run(house, blots_spec):
    return house.home.new_run(blots_spec())


def _says(status, words=""):
    return lambda job: JobReport(status, words)


def _unreachable(job):
    raise UmbraError("no answer")


def _beat(run, seconds_ago):
    path = run.path / subject._BEAT
    path.touch()
    then = time.time() - seconds_ago
    os.utime(path, (then, then))


@pytest.mark.parametrize(
    ("ask", "status", "words"),
    [
        (_says("pending", "Job has not started yet."), "queued", "has not started"),
        (_says("running"), "queued", "about to start"),
        (_says("stopped"), "cancelled", "stopped before it started"),
        (_says("failed", "there is no run 'x'"), "failed", "there is no run 'x'. UMBRA_HOME must"),
        (_says("gone"), "failed", "does not know it"),
        (_unreachable, "silent", "no answer"),
    ],
)
def test_the_status_of_a_submitted_run_is_that_of_its_job(run, ask, status, words):
    run.update(job=JOB)
    now = run_status(run, ask)
    assert now.status == status and words in now.reason


@pytest.mark.parametrize(
    ("ask", "status", "words"),
    [
        (_says("running"), "running", "another-host"),
        (_says("pending"), "running", "umbra-x-1"),
        (_says("failed"), "interrupted", "what was charged stays charged"),
        (_says("gone"), "interrupted", "gone from its cluster"),
    ],
)
def test_a_run_that_a_job_executes_elsewhere(run, ask, status, words):
    run.update(status="running", process=ELSEWHERE, job=JOB)
    now = run_status(run, ask)
    assert now.status == status and words in now.reason


@pytest.mark.parametrize("job", [None, JOB])
def test_a_process_that_cannot_be_reached_is_judged_by_its_heartbeat(run, job):
    run.update(status="running", process=ELSEWHERE, job=job)
    assert run_status(run, _unreachable).status == "silent"
    _beat(run, 3)
    assert run_status(run, _unreachable).status == "running"
    _beat(run, subject.SILENT + 60)
    now = run_status(run, _unreachable)
    assert now.status == "silent" and "no heartbeat for 3 min" in now.reason


def test_a_local_process_is_looked_up_without_its_cluster(run):
    run.update(status="running", process=ProcessIdentity.current(), job=JOB)
    assert run_status(run, _unreachable).status == "running"
    run.update(process=GONE)
    now = run_status(run, _unreachable)
    assert now.status == "interrupted" and "stays charged" in now.reason


def test_a_run_that_waits_for_resources_is_queued(run):
    run.update(status="running", process=ProcessIdentity.current(), waiting="it waits for 2 CPU")
    assert (run_status(run).status, run_status(run).reason) == ("queued", "it waits for 2 CPU")


def test_a_job_may_start_or_end_while_its_cluster_is_queried(run):
    run.update(job=JOB)

    def starts(job):
        run.update(status="running", process=ProcessIdentity.current())
        return JobReport("running")

    assert run_status(run, starts).status == "running"
    run.update(process=ELSEWHERE)

    def ends(job):
        run.update(status="done", process=None)
        return JobReport("succeeded")

    assert run_status(run, ends).status == "done"


def test_a_state_of_an_older_version_is_read(run):
    """It recorded neither host nor job, and MLflow runs of stages."""
    run.update(status="running", process=ProcessIdentity.current())
    state = json.loads(run.state_path.read_text())
    del state["process"]["host"], state["job"], state["jobs"], state["waiting"]
    state["mlflow_stage_run_ids"] = {"train": "0" * 32}
    run.state_path.write_text(json.dumps(state))
    assert run.state().is_live() and run_status(run).status == "running"
    assert "mlflow_stage_run_ids" not in run.update(message="").model_dump()


def test_a_heartbeat_is_written_during_the_block(run, monkeypatch):
    monkeypatch.setattr(subject, "SECONDS", 0.01)
    assert subject.seconds_since_heartbeat(run) is None
    with subject.heartbeat(run):
        beat = run.path / subject._BEAT
        os.utime(beat, (0, 0))
        for _ in range(1000):
            if beat.stat().st_mtime > 0:
                break
            threading.Event().wait(0.01)
        assert subject.seconds_since_heartbeat(run) < subject.SILENT


def test_a_stop_request_arrives_as_sigterm(run, monkeypatch):
    monkeypatch.setattr(subject, "SECONDS", 0.01)
    arrived = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: arrived.set())
    try:
        (run.path / subject._STOP).touch()  # meant for an earlier process: this one does not stop
        with subject.heartbeat(run):
            assert not arrived.wait(0.2)
            (run.path / subject._STOP).touch()
            assert arrived.wait(60)
    finally:
        signal.signal(signal.SIGTERM, before)
