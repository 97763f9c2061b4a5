"""Where a run stands, as far as it can be known: by process, by job, by signs of life."""

import os
import time

import pytest

from pipeline.cluster.jobs import JobReport
from pipeline.runs import status as heartbeat
from pipeline.runs.state import ProcessIdentity, RayJob
from pipeline.runs.status import run_status
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
    path = run.path / heartbeat._BEAT
    path.touch()
    then = time.time() - seconds_ago
    os.utime(path, (then, then))


@pytest.mark.parametrize(
    ("ask", "status", "words"),
    [
        (_says("pending", "Job has not started yet."), "queued", "has not started"),
        (_says("running"), "queued", "about to begin"),
        (_says("stopped"), "cancelled", "stopped before it began"),
        (_says("failed", "there is no run 'x'"), "failed", "there is no run 'x'. UMBRA_HOME must"),
        (_says("gone"), "failed", "does not know it"),
        (_unreachable, "silent", "no answer"),
    ],
)
def test_a_run_that_a_job_is_to_begin(run, ask, status, words):
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
def test_a_run_that_a_job_works_on_elsewhere(run, ask, status, words):
    run.update(status="running", process=ELSEWHERE, job=JOB)
    now = run_status(run, ask)
    assert now.status == status and words in now.reason


@pytest.mark.parametrize("job", [None, JOB])
def test_who_cannot_be_asked_is_judged_by_signs_of_life(run, job):
    run.update(status="running", process=ELSEWHERE, job=job)
    assert run_status(run, _unreachable).status == "silent"
    _beat(run, 3)
    assert run_status(run, _unreachable).status == "running"
    _beat(run, heartbeat.SILENT + 60)
    now = run_status(run, _unreachable)
    assert now.status == "silent" and "no sign of life for 3 min" in now.reason


def test_a_process_here_is_looked_up_and_nobody_asked(run):
    run.update(status="running", process=ProcessIdentity.current(), job=JOB)
    assert run_status(run, _unreachable).status == "running"
    run.update(process=GONE)
    now = run_status(run, _unreachable)
    assert now.status == "interrupted" and "stays charged" in now.reason


def test_a_run_that_waits_for_room_is_queued(run):
    run.update(status="running", process=ProcessIdentity.current(), waiting="it waits for 2 CPU")
    assert (run_status(run).status, run_status(run).reason) == ("queued", "it waits for 2 CPU")


def test_a_job_that_began_or_ended_while_it_was_asked_after(run):
    run.update(job=JOB)

    def begins(job):
        run.update(status="running", process=ProcessIdentity.current())
        return JobReport("running")

    assert run_status(run, begins).status == "running"
    run.update(process=ELSEWHERE)

    def ends(job):
        run.update(status="done", process=None)
        return JobReport("succeeded")

    assert run_status(run, ends).status == "done"


def test_a_state_of_an_older_version_is_read(run):
    """Neither host nor job was noted then."""
    run.update(status="running", process=ProcessIdentity.current())
    import json

    state = json.loads(run.state_path.read_text())
    del state["process"]["host"], state["job"], state["jobs"], state["waiting"]
    run.state_path.write_text(json.dumps(state))
    assert run.state().is_live() and run_status(run).status == "running"
