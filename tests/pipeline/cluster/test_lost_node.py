"""A driver hears of it when its own machine is lost to the cluster."""

import pytest

from pipeline.cluster import lost_node as subject
from pipeline.cluster.lost_node import lost_node


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


def test_this_machine_is_told_and_no_other(nodes):
    lost = lost_node()
    nodes[0]["Alive"] = False
    assert lost() is None
    nodes[1]["Alive"] = False
    assert "raylet on this machine died" in str(lost()) and "umbra resume" in str(lost())
    del nodes[1]
    assert lost() is not None


def test_a_cluster_that_cannot_be_asked_tells_nothing(nodes, monkeypatch):
    def silent():
        raise subject.RayError

    lost = lost_node()
    monkeypatch.setattr(subject.ray, "nodes", silent)
    assert lost() is None


@pytest.mark.slow
def test_a_machine_of_a_real_cluster_is_there(embedded):
    assert lost_node()() is None
