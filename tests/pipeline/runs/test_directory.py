import errno
import json
import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from pipeline.runs.directory import ProcessIdentity, RunDirectory, RunState, StageRecord
from pipeline.spec import parse_spec
from privacy.errors import IntegrityBroken, InvalidRequest, UmbraError
from tests.builders import SMALL_SPEC


@pytest.fixture
def spec():
    return parse_spec(SMALL_SPEC)


@pytest.fixture
def run(tmp_path, spec):
    return RunDirectory.create(tmp_path / "runs" / "small-1", spec)


def test_a_new_run(run, spec):
    assert run.run_id == "small-1"
    assert run.spec() == spec
    state = run.state()
    assert (state.run_id, state.status, state.attempt) == ("small-1", "created", 0)
    assert state.spec_sha256 == spec.sha256()
    assert state.created.tzinfo is not None
    assert run.release.is_dir()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_internal_folder_is_closed_to_others(tmp_path, spec, umask):
    (tmp_path / "runs").mkdir()
    before = os.umask(umask)
    try:
        run = RunDirectory.create(tmp_path / "runs" / "a", spec)
    finally:
        os.umask(before)
    assert stat.S_IMODE(run.internal.stat().st_mode) == 0o700


def test_a_run_is_never_made_twice(run, spec):
    with pytest.raises(FileExistsError):
        RunDirectory.create(run.path, spec)


def test_update_changes_what_is_named_and_nothing_else(run):
    before = run.state()
    after = run.update(status="running", stage="train", reservation_id="r1", message="hello")
    assert after == run.state()
    assert after.updated > before.updated
    kept = before.model_dump() | {
        "status": "running",
        "stage": "train",
        "reservation_id": "r1",
        "message": "hello",
        "updated": after.updated,
    }
    assert after.model_dump() == kept


@pytest.mark.parametrize(
    "change", [{"statsu": "done"}, {"status": "well"}, {"attempt": -1}, {"created": "soon"}]
)
def test_an_invalid_change_is_refused_and_not_written(run, change):
    before = run.state_path.read_bytes()
    with pytest.raises(ValidationError):
        run.update(**change)
    assert run.state_path.read_bytes() == before


def test_stages(run):
    assert not run.state().is_done("train")
    run.update(stage="train")
    state = run.finish_stage("train", 1.5)
    assert state.is_done("train")
    assert state.stage is None
    run.finish_stage("train", 2.5)
    run.finish_stage("sample", 0.5)
    assert run.state().stages == (
        StageRecord(name="train", seconds=2.5),
        StageRecord(name="sample", seconds=0.5),
    )


def test_begin_is_a_new_attempt_of_this_process(run):
    run.update(status="failed", message="the disk was full")
    state = run.begin()
    assert (state.status, state.attempt, state.message) == ("running", 1, "")
    assert state.process == ProcessIdentity.current()
    assert state.is_live()
    assert run.begin().attempt == 2


def test_a_run_whose_process_is_gone_is_not_live(run):
    gone = ProcessIdentity(os.getpid(), "an earlier start")
    assert not run.update(status="running", process=gone).is_live()
    ended = run.update(status="failed", process=ProcessIdentity.current())
    assert not ended.is_live()


def _without(key):
    def damage(text):
        state = json.loads(text)
        del state[key]
        return json.dumps(state)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"created"', '"creatd"', 1),
        lambda text: text.replace("small-1", "other-1"),
        _without("spec_sha256"),
    ],
)
def test_a_damaged_state_is_reported(run, damage):
    run.state_path.write_text(damage(run.state_path.read_text()))
    for reading in (run.state, run.begin, run.spec):
        with pytest.raises(IntegrityBroken, match=r"state\.json is damaged.*submit") as caught:
            reading()
        assert caught.value.exit_code == 4


def test_a_missing_state_is_reported(run):
    run.state_path.unlink()
    with pytest.raises(IntegrityBroken, match="cannot be read"):
        run.state()


def test_a_spec_that_was_changed_is_not_run(run):
    text = run.spec_path.read_text()
    run.spec_path.write_text(text.replace("epsilon: 8.0", "epsilon: 9.0"))
    with pytest.raises(IntegrityBroken, match="was changed after"):
        run.spec()
    run.spec_path.write_text(text.replace("epsilon: 8.0", "epsilon: x"))
    with pytest.raises(IntegrityBroken, match="cannot be read"):
        run.spec()
    run.spec_path.write_text(text)
    assert run.spec().privacy.epsilon == 8


def test_the_state_is_plain_json_with_utc_times(run):
    record = json.loads(run.state_path.read_text())
    created = datetime.fromisoformat(record["created"])
    assert created.utcoffset() == UTC.utcoffset(None)
    assert RunState.model_validate_json(run.state_path.read_bytes()) == run.state()


def test_updates_of_many_threads_are_all_kept(run):
    # Each adds to the stages it has read: a lost update would lose one.
    def add(number):
        run.update(message=f"{number}")
        run.finish_stage(f"stage-{number % 4}", float(number))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {record.name for record in run.state().stages} == {f"stage-{i}" for i in range(4)}


_HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


def test_only_one_process_works_on_a_run_until_it_is_killed(run):
    run.update(process=ProcessIdentity(4321, "then"))
    with run.lock():
        (lock,) = run.path.glob("run.lock")  # where this process waits for others, too
    # A bare interpreter: to import pipeline in it takes longer than everything else here.
    command = [sys.executable, "-S", "-c", _HOLD, lock]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        try:
            assert other.stdout.readline()
            with pytest.raises(InvalidRequest, match="process 4321"), run.lock():
                pytest.fail("two processes hold the run")
            run.update(message="state may still be written")
        finally:
            other.kill()
    with run.lock():
        pass


def test_an_error_under_the_lock_is_not_changed(run):
    with pytest.raises(BlockingIOError, match="of the work"), run.lock():
        raise BlockingIOError("of the work")
    with run.lock():
        pass


def test_a_full_disk_is_reported_and_loses_nothing(run, monkeypatch):
    before = run.state_path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UmbraError, match="disk is full"):
        run.update(message="x")
    assert run.state_path.read_bytes() == before
    assert run.state().message == ""


def test_a_folder_that_cannot_be_made(tmp_path, spec):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UmbraError, match="cannot write the run folder"):
        RunDirectory.create(tmp_path / "runs" / "a" / "b", spec)
