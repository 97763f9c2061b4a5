"""An error for users is heard once and is final."""

import threading
import time

import pytest

from pipeline.cluster import first_error as subject
from pipeline.cluster.first_error import ended_when_told, first_error, raise_told
from privacy.errors import DataError, UmbraError

pytestmark = pytest.mark.slow


@pytest.fixture
def told(embedded):
    """An actor that was told of two errors."""
    ray = pytest.importorskip("ray")
    actor = first_error()
    ray.get([actor.tell.remote(DataError("first")), actor.tell.remote(UmbraError("second"))])
    return actor


def test_the_first_is_raised_as_it_was(embedded, told):
    with pytest.raises(DataError, match="first"):
        raise_told(told)
    raise_told(first_error())


def test_who_does_not_end_by_himself_is_ended(told, monkeypatch):
    monkeypatch.setattr(subject, "_PATIENCE", 0.2)
    ended = threading.Event()
    with ended_when_told(told, ended.set):
        assert ended.wait(60)


def test_who_ends_in_time_or_was_told_of_nothing_is_left_alone(told, monkeypatch):
    ended = threading.Event()
    with ended_when_told(told, ended.set):
        time.sleep(1.5)  # seen, and patience has begun
    monkeypatch.setattr(subject, "_PATIENCE", 0.0)
    with ended_when_told(first_error(), ended.set):
        time.sleep(1.5)
    assert not ended.is_set()
