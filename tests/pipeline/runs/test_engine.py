"""What the engine decides before Ray starts and after it ended, without Ray."""

import os
import re
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Barrier
from time import sleep
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.cluster.calls import abort_when, check_abort_conditions
from pipeline.cluster.jobs import JobReport
from pipeline.progress import SilentProgress
from pipeline.runs import control, engine
from pipeline.runs.control import submit_job
from pipeline.runs.directory import ProcessIdentity, RayJob, RunDirectory
from pipeline.tracking.tracker import Ended, RunIdentity, Tracker
from privacy.errors import BudgetRefused, DataError, IntegrityBroken, InvalidRequest, UmbraError

SECRET = "pixel 0.7310585"


class Tracked:
    """A run in a fake MLflow."""

    def __init__(self):
        self.ended = []

    def stage(self, name):
        return nullcontext()

    def ledger_head(self, head):
        pass

    def finish(self, ended=Ended.FINISHED):
        self.ended.append(ended)


@pytest.fixture
def house(house, blots_spec):
    """The home, with what its data set is declared, so that a run may be submitted."""
    house.declare(blots_spec())
    return house


@pytest.fixture
def tracked(monkeypatch):
    run = Tracked()
    monkeypatch.setattr(engine, "_open_in_mlflow", lambda *_: run)
    return run


@pytest.fixture
def execute(house, tracked, monkeypatch):
    """Execute a run on a fake cluster of 2 processors, with `stage` in place of the real stages."""

    def call(run, stage=lambda *_: None, address=None, workers=None):
        @contextmanager
        def cluster(at, object_store_gib=None):
            assert at == address
            yield {"CPU": 2.0, "GPU": 0.0, "memory": 2.0**32}

        fake = SimpleNamespace(name="fake", run=stage)
        monkeypatch.setattr("pipeline.stages.STAGES", (fake,))
        monkeypatch.setattr("pipeline.cluster.budget_actor.budget_manager", lambda access: None)
        monkeypatch.setattr("pipeline.cluster.connection.cluster", cluster)
        monkeypatch.setattr("pipeline.cluster.connection.require_token", lambda at: None)
        monkeypatch.setattr("pipeline.cluster.calls.report_waiting", lambda tell: nullcontext())
        return engine.execute(run, house.home, SilentProgress(), address, workers)

    return call


@pytest.fixture
def run(house, blots_spec):
    return house.reserve(blots_spec())


def _raising(error):
    def stage(*_):
        raise error

    return stage


def test_submit_creates_a_run_and_reserves_its_budget(house, blots_spec):
    run = engine.submit(blots_spec(), house.home, embedded=True)
    state = run.state()
    assert (state.status, state.attempt) == ("created", 0) and state.is_done("ingest")
    reservation = house.budget.reservation(state.reservation_id)
    assert (reservation.run_id, reservation.void) == (run.run_id, False)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (("delta: 1e-3", "delta: 1e-4"), BudgetRefused, "a data set has one δ"),
        (("epsilon: 8", "epsilon: 9"), BudgetRefused, "blots"),
        (("name: blots\n  source", "name: other\n  source"), BudgetRefused, "other"),
        (("records: 40", "records: 41"), DataError, "N = 41, the source holds 40"),
        (("train.npz", "nothing.npz"), DataError, "nothing.npz"),
        (("evaluate:", "resources: {workers: 9999}\nevaluate:"), UmbraError, "9999 training"),
    ],
)
def test_a_refused_submission_leaves_no_run(house, blots_spec, change, error, words):
    before = house.kinds()
    with pytest.raises(error, match=words):
        engine.submit(blots_spec(change), house.home, embedded=True)
    assert house.home.runs() == () and house.kinds() == before


def test_a_run_for_a_cluster_needs_no_resources_here(house, blots_spec):
    spec = blots_spec(("evaluate:", "resources: {workers: 9999}\nevaluate:"))
    assert engine.submit(spec, house.home).state().reservation_id


def test_too_many_workers_are_refused_before_the_first_stage(house, blots_spec, execute):
    run = house.reserve(blots_spec(("evaluate:", "resources: {workers: 3}\nevaluate:")))
    with pytest.raises(UmbraError, match="3 training workers"):
        execute(run, _raising(AssertionError("a stage was begun")))
    state = run.state()
    assert (state.status, state.process) == ("failed", None) and "3 in all" in state.message
    execute(run, address="10.0.0.9:6379")
    run.update(status="failed")
    run.finish_stage("train", 1.0)
    assert execute(run).status == "done"


def test_a_refusal_is_recorded_in_the_state_and_raised(run, execute):
    with pytest.raises(BudgetRefused):
        execute(run, _raising(BudgetRefused("not enough is left")))
    state = run.state()
    assert (state.status, state.message, state.process) == ("failed", "not enough is left", None)


def test_the_state_records_the_type_alone_of_an_unexpected_error(run, execute):
    with pytest.raises(ArithmeticError):
        execute(run, _raising(ArithmeticError(SECRET)))
    assert run.state().message == "ArithmeticError"
    assert SECRET not in run.state_path.read_text()


def test_a_run_that_was_interrupted_continues_in_a_later_attempt(run, execute):
    with pytest.raises(KeyboardInterrupt):
        execute(run, _raising(KeyboardInterrupt()))
    assert (run.state().status, run.state().attempt) == ("cancelled", 1)
    execute(run)
    assert (run.state().status, run.state().attempt, run.state().message) == ("done", 2, "")


def test_sigterm_interrupts_a_run_only_while_it_is_executed(run, execute):
    def stages(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        execute(run, stages)
    assert run.state().status == "cancelled"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_disk_that_stays_full_ends_a_waiting_run(run, execute, monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("pipeline.cluster.calls.monotonic", lambda: now.seconds)
    looked = []

    def full(folder):
        looked.append(folder)
        return UmbraError("nothing can be written")

    def wait_for_ray(*_):
        for _ in range(2):
            check_abort_conditions()
            now.seconds += 60

    monkeypatch.setattr("pipeline.cluster.calls.disk_write_error", full)
    with pytest.raises(UmbraError, match="nothing can be written"):
        execute(run, wait_for_ray)
    assert (run.state().status, run.state().message) == ("failed", "nothing can be written")
    assert set(looked) == {run.internal}


def test_a_full_disk_ends_a_wait_for_mlflow(monkeypatch):
    """As any other; the server does not answer for ever."""
    answered = threading.Event()
    full = UmbraError("nothing can be written")
    with (
        pytest.raises(UmbraError, match="nothing can be written"),
        abort_when(lambda: full, grace_period=0),
    ):
        monkeypatch.setattr(engine, "_MLFLOW_SECONDS", 0.0)
        with engine._opened_in_background(answered.wait) as opened:
            opened()
    answered.set()


def test_a_folder_that_ray_cannot_use_is_refused_before_anything_is_reserved(
    house, blots_spec, monkeypatch
):
    def refuse():
        raise UmbraError("set TMPDIR to a shorter folder")

    monkeypatch.setattr("pipeline.cluster.connection.socket_folder", refuse)
    before = house.kinds()
    with pytest.raises(UmbraError, match="set TMPDIR"):
        engine.submit(blots_spec(), house.home, embedded=True)
    assert house.kinds() == before and house.home.runs() == ()


def test_data_that_changed_before_ingest_fail_the_run(house, blots_spec, blots, tmp_path, execute):
    for name in ("train.npz", "holdout.npz"):
        (tmp_path / name).write_bytes((blots / name).read_bytes())
    spec = blots_spec()
    source = spec.data.source.model_copy(update={"path": tmp_path / "train.npz"})
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"source": source})})
    run = house.home.new_run(spec)
    np.savez(
        tmp_path / "train.npz", images=np.zeros((3, 8, 8, 1), np.uint8), labels=np.zeros(3, int)
    )
    with pytest.raises(DataError):
        execute(run)
    assert (run.state().status, run.state().reservation_id) == ("failed", None)


@pytest.mark.parametrize("stage", ["submit", "execute"])
def test_private_file_names_stay_inside(house, blots_spec, tmp_path, execute, stage):
    for number in range(40):
        file = tmp_path / "in" / ("round", "square")[number % 2] / f"jane-doe-{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(file)
    file.write_bytes(b"no image")
    spec = blots_spec(("{kind: npz, path: train.npz}", f"{{kind: folder, path: {tmp_path}/in}}"))
    text = r"in, image 3. of 40: a PNG or JPEG was expected.* Which of them is in (.*)"
    with pytest.raises(DataError) as caught:
        if stage == "submit":
            engine.submit(spec, house.home)
        else:
            execute(house.home.new_run(spec))
    (kept,) = re.search(text, str(caught.value)).groups()
    assert "jane-doe-39.png" in Path(kept).read_text()
    assert Path(kept).parent.name == "internal"
    for path in house.home.path.rglob("*"):
        if path.is_file() and path != Path(kept):
            assert b"jane-doe" not in path.read_bytes(), path


def test_a_finished_run_is_not_executed_again(run, execute):
    run.update(status="done")
    with pytest.raises(InvalidRequest, match="there is nothing left to do"):
        execute(run)
    assert run.state().status == "done"


def test_only_one_process_works_on_a_run(run, execute):
    with run.lock(), pytest.raises(InvalidRequest, match="is being worked on"):
        execute(run)
    assert run.state().status == "created"


def test_cancel_signals_the_process_that_works_on_the_run(run, monkeypatch):
    assert control.cancel(run) is False
    run.begin()
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    assert control.cancel(run) is True
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_cancel_of_a_process_that_is_gone_or_not_ours(run, monkeypatch):
    def kill(error):
        def send(pid, number):
            raise error

        return send

    run.begin()
    monkeypatch.setattr(os, "kill", kill(ProcessLookupError()))
    assert control.cancel(run) is False
    monkeypatch.setattr(os, "kill", kill(PermissionError()))
    with pytest.raises(UmbraError, match="belongs to another user"):
        control.cancel(run)


ELSEWHERE = ProcessIdentity(7, "today", "another-host")


class Jobs:
    """A cluster's Jobs API that a test steers."""

    status, refusal, stopped = "pending", None, ()

    def __init__(self, address):
        self.address = address

    def submit(self, job, run_id, home, workers):
        if Jobs.refusal:
            raise Jobs.refusal

    def report(self, job):
        return JobReport(Jobs.status)

    def stop(self, job):
        Jobs.stopped += (job.submission_id,)
        Jobs.status = "stopped"


@pytest.fixture
def jobs(monkeypatch):
    for name in ("status", "refusal", "stopped"):
        monkeypatch.setattr(Jobs, name, getattr(Jobs, name))
    monkeypatch.setattr("pipeline.cluster.jobs.Jobs", Jobs)
    return Jobs


def test_a_process_on_another_machine_is_stopped_through_the_folder(run, monkeypatch):
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail("a process here was signalled"))
    run.update(status="running", process=ELSEWHERE)
    assert control.cancel(run) is True
    assert (run.path / "stop-asked").exists()


def test_a_run_is_submitted_as_one_job_at_a_time_and_cancelled_there(house, run, jobs):
    job = submit_job(run, house.home, "http://10.0.0.9:8265")
    state = run.state()
    assert (state.status, state.job) == ("created", job)
    with pytest.raises(InvalidRequest, match="cannot be submitted to a cluster"):
        submit_job(run, house.home, "http://10.0.0.9:8265")
    assert control.cancel(run) is True
    assert jobs.stopped == (job.submission_id,)
    assert run.state().status == "cancelled"
    assert control.cancel(run) is False
    again = submit_job(run, house.home, "http://10.0.0.9:8265")
    assert again.submission_id != job.submission_id


def test_one_of_two_simultaneous_submissions_is_refused(house, run, jobs, monkeypatch):
    both_look, submitted = Barrier(2), []

    def submit(self, job, run_id, home, workers):
        submitted.append(job.submission_id)
        sleep(0.2)  # the other would come in here

    def submit_it():
        both_look.wait()
        return submit_job(run, house.home, "http://10.0.0.9:8265")

    monkeypatch.setattr(jobs, "submit", submit)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(submit_it) for _ in range(2)]
    refusals = [one.exception() for one in asked if one.exception()]
    assert len(refusals) == 1 and "cannot be submitted to a cluster" in str(refusals[0])
    assert submitted == [run.state().job.submission_id]


def test_a_refused_job_leaves_the_run_as_it_was(house, run, jobs):
    run.update(status="failed", message="the disk is full")
    jobs.refusal = UmbraError("no")
    with pytest.raises(UmbraError, match="no"):
        submit_job(run, house.home, "http://10.0.0.9:8265")
    state = run.state()
    assert (state.status, state.message, state.job) == ("failed", "the disk is full", None)


def test_a_run_keeps_its_job_only_while_that_job_executes_it(run, execute, monkeypatch):
    job = RayJob("http://10.0.0.9:8265", "umbra-run-1")
    run.update(job=job, jobs=1)
    monkeypatch.setenv("UMBRA_JOB", job.submission_id)
    execute(run)
    assert run.state().job == job
    monkeypatch.delenv("UMBRA_JOB")
    run.update(status="failed")
    execute(run)
    assert (run.state().job, run.state().jobs) == (None, 1)


def test_no_ledger_is_created_where_that_of_a_run_is_missing(house, run, execute):
    (house.home.path / "ledger.db").rename(house.home.path / "elsewhere.db")
    with pytest.raises(IntegrityBroken, match="saw the ledger"):
        execute(run)
    assert not (house.home.path / "ledger.db").exists() and run.state().attempt == 0


def test_workers_of_this_start_reach_the_stages_and_not_the_spec(run, execute):
    seen = []
    before = run.spec_path.read_bytes()
    execute(run, lambda context, _: seen.append(context.spec.resources), workers=2)
    assert [(of.workers, of.sampling_actors) for of in seen] == [(2, 2)]
    assert run.spec_path.read_bytes() == before
    run.update(status="failed")
    with pytest.raises(UmbraError, match="5 training workers"):
        execute(run, workers=5)


def test_a_run_that_died_before_it_recorded_its_reservation_can_be_given_up(house, run):
    before = house.budget.odometer("blots")
    assert before.open_reservations == 1
    run.update(reservation_id=None, stages=())
    assert control.give_up(run, house.home).refunded == {"dp-sgd": 4}
    assert house.budget.odometer("blots").left == 8.5
    assert run.state().status == "cancelled"


def test_giving_up_a_killed_run_ends_it_in_mlflow(house, run, migrated):
    shutil.copy(migrated, house.home.path / "mlflow.db")
    tracker = Tracker(house.home.mlflow_uri, house.home.artifacts)
    identity = RunIdentity(run.run_id, "0" * 64, "ledger", "1:" + "0" * 64, False, "record")
    tracked = tracker.start("blots", identity, run.release)
    run.update(mlflow_run_id=tracked.id)
    control.give_up(run, house.home)
    assert tracker.client.get_run(tracked.id).info.status == "KILLED"


def test_a_run_can_be_given_up_without_mlflow(house, run, migrated):
    shutil.copy(migrated, house.home.path / "mlflow.db")
    run.update(mlflow_run_id="0" * 32)
    assert control.give_up(run, house.home).refunded == {"dp-sgd": 4}


def test_a_run_that_reserved_nothing_has_nothing_to_give_up(house, blots_spec):
    run = house.home.new_run(blots_spec())
    with pytest.raises(InvalidRequest, match="nothing to give back"):
        control.give_up(run, house.home)


def test_submit_gives_back_a_reservation_it_could_not_record(house, blots_spec, monkeypatch):
    def full(self, **changes):
        raise UmbraError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "update", full)
        with pytest.raises(UmbraError, match="No space"):
            engine.submit(blots_spec(), house.home)
    meter = house.budget.odometer("blots")
    assert (meter.committed, meter.open_reservations, house.home.runs()) == (0.0, 0, ())


@pytest.mark.parametrize(
    ("error", "ended"), [(UmbraError("why"), Ended.FAILED), (KeyboardInterrupt(), Ended.KILLED)]
)
def test_a_run_that_fails_or_is_cancelled_ends_in_mlflow_too(run, execute, tracked, error, ended):
    with pytest.raises(type(error)):
        execute(run, _raising(error))
    assert tracked.ended == [ended]


def test_mlflow_is_opened_while_the_cluster_starts():
    started, tracked = threading.Event(), Tracked()

    def open_mlflow():
        assert started.wait(60)
        return tracked

    with engine._opened_in_background(open_mlflow) as tracked_run:
        started.set()
        assert tracked_run() is tracked
    assert tracked.ended == []


def test_an_error_of_opening_mlflow_is_raised_where_the_run_is_needed():
    def open_mlflow():
        raise UmbraError("MLflow does not answer")

    with pytest.raises(UmbraError, match="does not answer"):  # noqa: SIM117
        with engine._opened_in_background(open_mlflow) as tracked_run:
            tracked_run()
    with pytest.raises(DataError, match="first"), engine._opened_in_background(open_mlflow):
        raise DataError("first")


def test_an_interrupt_does_not_wait_for_an_mlflow_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(engine, "_MLFLOW_SECONDS", 0.01)
    answered = threading.Event()
    with pytest.raises(KeyboardInterrupt), engine._opened_in_background(answered.wait):
        raise KeyboardInterrupt
    assert not answered.is_set()
    answered.set()
