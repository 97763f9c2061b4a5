"""A training that cannot go on is ended; one that is well, or ends by itself, is left alone."""

import os
import threading
from types import SimpleNamespace

import pytest

from pipeline.cluster import watchdog as subject
from pipeline.cluster.watchdog import ended_if, no_room
from privacy.errors import DataError, UmbraError


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(subject, "_SECONDS", 0.01)
    monkeypatch.setattr(subject, "_PATIENCE", 0.0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand, and looks that are taken in quick succession."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(subject, "_SECONDS", 0.001)
    monkeypatch.setattr(subject, "monotonic", lambda: now.seconds)
    return now


class Hopeless:
    """Tells what it is set to; `seen` waits until it was asked twice again."""

    def __init__(self, reason=None):
        self.reason = reason
        self._asked = threading.Semaphore(0)

    def __call__(self):
        self._asked.release()
        return self.reason

    def seen(self):
        while self._asked.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self._asked.acquire(timeout=60)


def test_what_goes_on_without_hope_is_ended_once(at_once):
    ends = []
    hopeless = Hopeless(DataError("refused"))
    with ended_if(hopeless, lambda: ends.append("end")):
        for _ in range(5):
            hopeless.seen()
    assert ends == ["end"]


def test_everybody_has_some_seconds_to_end_by_themselves(clock):
    ends = []
    hopeless = Hopeless(DataError("refused"))
    with ended_if(hopeless, lambda: ends.append("end")):
        hopeless.seen()
        clock.seconds += subject._PATIENCE - 0.1
        hopeless.seen()
        assert ends == []
        clock.seconds += 0.2
        hopeless.seen()
        assert ends == ["end"]


def test_hope_that_returns_begins_the_patience_anew(clock):
    ends = []
    hopeless = Hopeless(DataError("full"))
    with ended_if(hopeless, lambda: ends.append("end")):
        hopeless.seen()
        hopeless.reason = None
        hopeless.seen()
        clock.seconds += 2 * subject._PATIENCE
        hopeless.reason = DataError("full again")
        hopeless.seen()
    assert ends == []


def test_folders_with_room_are_fine_and_nothing_is_left_in_them(tmp_path):
    assert no_room([tmp_path]) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_not_be_written_to_is_told(tmp_path):
    tmp_path.chmod(0o500)
    assert str(tmp_path) in str(no_room([tmp_path]))


@pytest.fixture
def full():
    """Files of this process cannot grow: to Python that is as a full disk is."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_in_words(tmp_path, full):
    told = no_room([tmp_path])
    assert isinstance(told, UmbraError)
    assert f"nothing can be written in {tmp_path} (File too large)" in str(told)
    assert "umbra resume" in str(told)
