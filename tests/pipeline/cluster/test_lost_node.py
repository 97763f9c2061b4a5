"""A driver whose machine is lost to the cluster hears of it, whatever it waits for."""

import signal
import threading
import time

import pytest

from pipeline.cluster import lost_node as subject
from pipeline.cluster.lost_node import told_if_lost
from privacy.errors import DataError, UmbraError


class _Terminated(BaseException):
    pass


@pytest.fixture(autouse=True)
def terminable(monkeypatch):
    """SIGTERM raises, as it does while a run is executed; looks follow each other quickly."""

    def raise_it(number, frame):
        raise _Terminated

    monkeypatch.setattr(subject, "_SECONDS", 0.01)
    before = signal.signal(signal.SIGTERM, raise_it)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def nodes(monkeypatch):
    """What the cluster tells of its machines; this one is "here"."""
    told = [{"NodeID": "there", "Alive": True}, {"NodeID": "here", "Alive": True}]

    class Context:
        def get_node_id(self):
            return "here"

    monkeypatch.setattr(subject.ray, "get_runtime_context", Context)
    monkeypatch.setattr(subject.ray, "nodes", lambda: told)
    return told


def test_a_block_that_waits_is_woken_with_words(nodes):
    with (
        pytest.raises(UmbraError, match=r"raylet on this machine died.*umbra resume"),
        told_if_lost(),
    ):
        nodes[1]["Alive"] = False
        threading.Event().wait(60)


def test_what_fails_for_it_is_told_by_it(nodes, monkeypatch):
    seen = threading.Event()
    monkeypatch.setattr(subject.os, "kill", lambda *_: seen.set())
    with pytest.raises(UmbraError, match="raylet"), told_if_lost():
        nodes[1]["Alive"] = False
        assert seen.wait(60)
        raise DataError("a worker died")


def test_other_machines_may_be_lost_and_other_errors_stay_what_they_are(nodes):
    with pytest.raises(DataError, match="of the block"), told_if_lost():
        nodes[0]["Alive"] = False
        time.sleep(0.05)
        raise DataError("of the block")
    with pytest.raises(_Terminated), told_if_lost():
        signal.raise_signal(signal.SIGTERM)


def test_a_cluster_that_cannot_be_asked_tells_nothing(nodes, monkeypatch):
    def silent():
        raise subject.RayError

    monkeypatch.setattr(subject.ray, "nodes", silent)
    with told_if_lost():
        time.sleep(0.05)
