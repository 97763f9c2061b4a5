"""What the engine decides before Ray starts and after it ended, without Ray."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from threading import Barrier
from time import sleep
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.cluster.calls import check_abort_conditions
from pipeline.cluster.jobs import JobReport
from pipeline.progress import SilentProgress
from pipeline.runs import cancel as cancelling
from pipeline.runs import engine
from pipeline.runs.directory import RunDirectory
from pipeline.runs.state import ProcessIdentity, RayJob
from pipeline.runs.submit_job import submit_job
from pipeline.tracking.tracker import Ended, RunIdentity, Tracker
from privacy.errors import BudgetRefused, DataError, InvalidRequest, NoLedger, UmbraError

SECRET = "pixel 0.7310585"


class Tracked:
    """A run in a pretended MLflow."""

    def __init__(self):
        self.ended = []

    def finish(self, ended):
        self.ended.append(ended)


@pytest.fixture
def tracked(monkeypatch):
    run = Tracked()
    monkeypatch.setattr(engine, "_track", lambda *_: run)
    return run


@pytest.fixture
def execute(house, tracked, monkeypatch):
    """Execute a run on a pretended cluster of 2 processors, with `stages` in place of the real."""

    def call(run, stages=lambda *_: None, address=None):
        @contextmanager
        def cluster(at, object_store_gib=None):
            assert at == address
            yield {"CPU": 2.0, "GPU": 0.0, "memory": 2.0**32}

        monkeypatch.setattr(engine, "cluster", cluster)
        monkeypatch.setattr(engine, "_run_stages", stages)
        monkeypatch.setattr(engine, "require_token", lambda at: None)
        monkeypatch.setattr(engine, "_waiting_told", lambda run, at: nullcontext())
        return engine.execute(run, house.home, SilentProgress(), address)

    return call


@pytest.fixture
def run(house, blots_spec):
    return house.reserve(blots_spec())


def _raising(error):
    def stages(*_):
        raise error

    return stages


def test_submit_makes_a_run_and_reserves_its_budget(house, blots_spec):
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
def test_what_is_refused_leaves_no_run_and_spends_nothing(house, blots_spec, change, error, words):
    before = house.kinds()
    with pytest.raises(error, match=words):
        engine.submit(blots_spec(change), house.home, embedded=True)
    assert house.home.runs() == () and house.kinds() == before


def test_what_a_cluster_is_to_run_needs_no_room_here(house, blots_spec):
    spec = blots_spec(("evaluate:", "resources: {workers: 9999}\nevaluate:"))
    assert engine.submit(spec, house.home).state().reservation_id


def test_more_workers_than_have_room_are_refused_before_the_first_stage(house, blots_spec, execute):
    run = house.reserve(blots_spec(("evaluate:", "resources: {workers: 3}\nevaluate:")))
    with pytest.raises(UmbraError, match="3 training workers"):
        execute(run, _raising(AssertionError("a stage was begun")))
    state = run.state()
    assert (state.status, state.process) == ("failed", None) and "3 in all" in state.message
    execute(run, address="10.0.0.9:6379")
    run.update(status="failed")
    run.finish_stage("train", 1.0)
    execute(run)


def test_a_refusal_is_told_in_the_state_and_raised(run, execute):
    with pytest.raises(BudgetRefused):
        execute(run, _raising(BudgetRefused("not enough is left")))
    state = run.state()
    assert (state.status, state.message, state.process) == ("failed", "not enough is left", None)


def test_of_an_unforeseen_error_the_state_tells_the_type_alone(run, execute):
    with pytest.raises(ArithmeticError):
        execute(run, _raising(ArithmeticError(SECRET)))
    assert run.state().message == "ArithmeticError"
    assert SECRET not in run.state_path.read_text()


def test_an_interrupt_cancels_and_a_later_attempt_goes_on(run, execute):
    with pytest.raises(KeyboardInterrupt):
        execute(run, _raising(KeyboardInterrupt()))
    assert (run.state().status, run.state().attempt) == ("cancelled", 1)
    execute(run)
    assert (run.state().status, run.state().attempt, run.state().message) == ("running", 2, "")


def test_sigterm_is_an_interrupt_while_a_run_is_executed_and_only_then(run, execute):
    def stages(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        execute(run, stages)
    assert run.state().status == "cancelled"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_disk_that_stays_full_ends_a_run_that_waits(run, execute, monkeypatch):
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

    monkeypatch.setattr(engine, "disk_write_error", full)
    with pytest.raises(UmbraError, match="nothing can be written"):
        execute(run, wait_for_ray)
    assert (run.state().status, run.state().message) == ("failed", "nothing can be written")
    assert set(looked) == {run.internal}


def test_data_that_changed_before_ingest_are_told_and_the_run_is_not_left_running(
    house, blots_spec, blots, tmp_path, execute
):
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


def test_a_run_that_is_done_is_not_begun_again(run, execute):
    run.update(status="done")
    with pytest.raises(InvalidRequest, match="there is nothing left to do"):
        execute(run)
    assert run.state().status == "done"


def test_only_one_process_works_on_a_run(run, execute):
    with run.lock(), pytest.raises(InvalidRequest, match="is being worked on"):
        execute(run)
    assert run.state().status == "created"


def test_cancel_signals_the_process_that_works_on_the_run(run, monkeypatch):
    assert cancelling.cancel(run) is False
    run.begin()
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    assert cancelling.cancel(run) is True
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_cancel_of_a_process_that_is_gone_or_not_ours(run, monkeypatch):
    def kill(error):
        def send(pid, number):
            raise error

        return send

    run.begin()
    monkeypatch.setattr(os, "kill", kill(ProcessLookupError()))
    assert cancelling.cancel(run) is False
    monkeypatch.setattr(os, "kill", kill(PermissionError()))
    with pytest.raises(UmbraError, match="belongs to another user"):
        cancelling.cancel(run)


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


def test_a_process_elsewhere_is_asked_through_the_folder(run, monkeypatch):
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail("a process here was signalled"))
    run.update(status="running", process=ELSEWHERE)
    assert cancelling.cancel(run) is True
    assert (run.path / "stop-asked").exists()


def test_a_run_is_handed_to_one_job_at_a_time_and_cancelled_there(house, run, jobs):
    job = submit_job(run, house.home, "http://10.0.0.9:8265")
    state = run.state()
    assert (state.status, state.job) == ("created", job)
    with pytest.raises(InvalidRequest, match="cannot be handed to a cluster"):
        submit_job(run, house.home, "http://10.0.0.9:8265")
    assert cancelling.cancel(run) is True
    assert jobs.stopped == (job.submission_id,)
    assert run.state().status == "cancelled"
    assert cancelling.cancel(run) is False
    again = submit_job(run, house.home, "http://10.0.0.9:8265")
    assert again.submission_id != job.submission_id


def test_of_two_that_hand_a_run_over_at_once_one_is_refused(house, run, jobs, monkeypatch):
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
    assert len(refusals) == 1 and "cannot be handed to a cluster" in str(refusals[0])
    assert submitted == [run.state().job.submission_id]


def test_a_job_that_is_refused_leaves_the_run_as_it_was(house, run, jobs):
    run.update(status="failed", message="the disk is full")
    jobs.refusal = UmbraError("no")
    with pytest.raises(UmbraError, match="no"):
        submit_job(run, house.home, "http://10.0.0.9:8265")
    state = run.state()
    assert (state.status, state.message, state.job) == ("failed", "the disk is full", None)


def test_a_job_keeps_its_name_and_a_process_is_none(run, execute, monkeypatch):
    job = RayJob("http://10.0.0.9:8265", "umbra-run-1")
    run.update(job=job, jobs=1)
    monkeypatch.setenv("UMBRA_JOB", job.submission_id)
    execute(run)
    assert run.state().job == job
    monkeypatch.delenv("UMBRA_JOB")
    run.update(status="failed")
    execute(run)
    assert (run.state().job, run.state().jobs) == (None, 1)


def test_where_the_ledger_of_a_run_is_not_none_is_begun(house, run, execute):
    (house.home.path / "ledger.db").rename(house.home.path / "elsewhere.db")
    with pytest.raises(NoLedger):
        execute(run)
    assert not (house.home.path / "ledger.db").exists() and run.state().attempt == 0


def test_workers_of_this_start_reach_the_stages_and_not_the_spec(run, house, tracked, monkeypatch):
    seen = []
    monkeypatch.setattr(engine, "cluster", lambda at, gib=None: nullcontext({"CPU": 4.0}))
    monkeypatch.setattr(engine, "_run_stages", lambda *of: seen.append(of))
    before = run.spec_path.read_bytes()
    engine.execute(run, house.home, SilentProgress(), workers=3)
    assert seen[0][-1] == 3 and seen[0][2].sha256() == run.state().spec_sha256
    resources = engine._for_this_start(seen[0][2], 3).resources
    assert (resources.workers, resources.sampling_actors) == (3, 3)
    assert run.spec_path.read_bytes() == before
    with pytest.raises(UmbraError, match="5 training workers"):
        engine.execute(run, house.home, SilentProgress(), workers=5)


def test_a_run_that_died_before_it_noted_its_reservation_can_be_given_up(house, run):
    before = house.budget.odometer("blots")
    assert before.open_reservations == 1
    run.update(reservation_id=None, stages=())
    assert cancelling.give_up(run, house.home).refunded == {"dp-sgd": 4}
    assert house.budget.odometer("blots").left == 8.5
    assert run.state().status == "cancelled"


def test_a_killed_run_that_is_given_up_no_longer_runs_in_mlflow(house, run):
    tracker = Tracker(house.home.mlflow_uri, house.home.artifacts)
    identity = RunIdentity(run.run_id, "0" * 64, "ledger", "1:" + "0" * 64, False, "record")
    tracked = tracker.start("blots", identity, run.release)
    run.update(mlflow_run_id=tracked.id)
    cancelling.give_up(run, house.home)
    assert tracker.client.get_run(tracked.id).info.status == "KILLED"


def test_a_run_is_given_up_without_mlflow(house, run):
    run.update(mlflow_run_id="0" * 32)
    assert cancelling.give_up(run, house.home).refunded == {"dp-sgd": 4}


def test_a_run_that_reserved_nothing_has_nothing_to_give_up(house, blots_spec):
    run = house.home.new_run(blots_spec())
    with pytest.raises(InvalidRequest, match="nothing to give back"):
        cancelling.give_up(run, house.home)


def test_submit_gives_back_what_a_full_disk_made_it_forget(house, blots_spec, monkeypatch):
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
def test_what_ends_a_run_ends_it_in_mlflow(run, execute, tracked, error, ended):
    with pytest.raises(type(error)):
        execute(run, _raising(error))
    assert tracked.ended == [ended]


def test_mlflow_is_opened_beside_what_the_block_begins_with():
    begun, tracked = threading.Event(), Tracked()

    def track():
        assert begun.wait(60)
        return tracked

    with engine._tracked(track) as opened:
        begun.set()
        assert opened() is tracked
    assert tracked.ended == []


def test_an_mlflow_that_cannot_be_opened_is_told_where_it_is_needed():
    def track():
        raise UmbraError("MLflow does not answer")

    with pytest.raises(UmbraError, match="does not answer"), engine._tracked(track) as opened:
        opened()
    with pytest.raises(DataError, match="first"), engine._tracked(track):
        raise DataError("first")


def test_who_stops_does_not_wait_for_an_mlflow_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(engine, "_OPENING_SECONDS", 0.01)
    answered = threading.Event()
    with pytest.raises(KeyboardInterrupt), engine._tracked(answered.wait):
        raise KeyboardInterrupt
    assert not answered.is_set()
    answered.set()
