"""Actors that are started, watched and dismissed, on a real cluster."""

import os
import signal
import threading
import time

import pytest

from pipeline.cluster import actor_group as subject
from pipeline.cluster.actor_group import ActorGroup, ActorPool, open_rendezvous, reserved_room
from pipeline.cluster.calls import WorkerDied, abort_when, wait
from pipeline.cluster.connection import per_worker
from pipeline.spec import Resources
from privacy.errors import DataError

ONE = {"CPU": 1.0}
pytestmark = pytest.mark.slow


class Worker:
    """Counts while it sleeps."""

    def __init__(self):
        self.done = 0

    def progress(self):
        return self.done

    def rendezvous(self, size):
        return ("here", size)

    def work(self, rank, size, address):
        assert address == (("here", size) if size > 1 else None)
        for _ in range(5):
            time.sleep(0.05)
            self.done += 1

    def stop(self):
        self.done = 99

    def sleep(self):
        self.done = 7
        time.sleep(60)

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def pool(embedded):
    pool = ActorPool(Worker, num_cpus=0)
    yield pool
    pool.dismiss_all()


def _ended(pool, seconds):
    return pool.ended(wait(pool.pending, seconds)[0])


def _until(condition):
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_progress_is_returned_while_an_actor_works(pool):
    actor = pool.start()
    pool.call(actor, "sleep")
    _until(lambda: _ended(pool, 0.1) == [] and pool.progress().get(actor) == 7)
    pool.dismiss(actor)
    assert len(pool) == 0 and not pool.pending


def test_an_actor_that_dies_ends_its_call_with_worker_died(pool):
    actor = pool.start()
    (started,) = _until(lambda: _ended(pool, 1))
    assert started.started and started.error is None
    pool.call(actor, "die")
    (ended,) = _until(lambda: _ended(pool, 1))
    assert ended.actor == actor and isinstance(ended.error, WorkerDied)


@pytest.mark.parametrize("size", [1, 2, None])
def test_a_group_of_a_fixed_or_elastic_size_works_to_its_end(embedded, size):
    if embedded["CPU"] < (size or 1):
        pytest.skip("needs two processors")
    counts = []
    ActorGroup("work", Worker, (), ONE, size, at_most=2).run(counts.append)
    assert counts[-1] == 5


def test_progress_that_cannot_be_shown_ends_no_work(embedded):
    counts = []

    def show(count):
        counts.append(count)
        raise BrokenPipeError

    ActorGroup("work", Worker, (), ONE, 1).run(show)
    assert counts[-1] == 5


class Stoppable(Worker):
    """Works until it is asked to stop, and then a little longer."""

    def __init__(self, mark):
        super().__init__()
        self.mark, self.asked = mark, threading.Event()

    def stop(self):
        self.asked.set()

    def work(self, rank, size, address):
        assert self.asked.wait(60)
        time.sleep(0.5)
        self.mark.touch()


class Deaf(Stoppable):
    """Never stops by itself."""

    def stop(self):
        pass


def _interrupt(count):
    raise KeyboardInterrupt


def test_an_interrupted_group_ends_by_itself(embedded, tmp_path):
    mark = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        ActorGroup("work", Stoppable, (mark,), ONE, 1).run(_interrupt)
    assert mark.exists()


def test_one_that_does_not_end_is_ended(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "STOP_SECONDS", 0.5)
    with pytest.raises(KeyboardInterrupt):
        ActorGroup("work", Deaf, (tmp_path / "stopped",), ONE, 1).run(_interrupt)
    assert not (tmp_path / "stopped").exists()
    with reserved_room({"CPU": embedded["CPU"]}, 1, 1) as places:
        assert len(places) == 1


def test_an_elastic_group_has_as_many_places_as_there_is_room_for(embedded):
    cpus = int(embedded["CPU"])
    with reserved_room(ONE, None, at_most=1000) as places:
        assert len(places) == cpus
    with reserved_room(ONE, None, at_most=1) as places:
        assert len(places) == 1


def test_an_elastic_group_leaves_out_what_others_hold(embedded, monkeypatch):
    if embedded["CPU"] < 2:
        pytest.skip("needs two processors")
    monkeypatch.setattr(subject, "_ROOM_SECONDS", 0.5)
    with reserved_room(ONE, 1, 1), reserved_room(ONE, None, at_most=1000) as places:
        assert len(places) == int(embedded["CPU"]) - 1


def test_a_wait_for_room_ends_when_a_condition_holds_and_leaves_nothing_reserved(embedded):
    full = DataError("full")
    begun = threading.Event()

    def condition():
        begun.set()
        return full

    with (
        pytest.raises(DataError, match="full"),
        abort_when(condition, grace_period=0),
        reserved_room({"CPU": embedded["CPU"] + 1}, 1, 1),
    ):
        pass
    assert begun.is_set()
    with reserved_room({"CPU": embedded["CPU"]}, 1, 1) as places:
        assert len(places) == 1


def test_workers_meet_on_the_interface_of_the_cluster_only(embedded):
    server, host, port = open_rendezvous()
    with server:
        assert host == "127.0.0.1" and server.getsockname() == (host, port)


def test_a_worker_holds_its_share_of_a_gpu():
    asked = Resources(workers=2, gpus_per_worker=0.5, cpus_per_worker=3, memory_gib_per_worker=1)
    assert per_worker(asked) == {"CPU": 3, "GPU": 0.5, "memory": 1024**3}
    assert per_worker(Resources()) == {"CPU": 1}
