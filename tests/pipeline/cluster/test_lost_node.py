"""A driver stops waiting when its own machine is lost to the cluster."""

import pytest
import ray
from ray.exceptions import RayError

from pipeline.cluster.calls import lost_node_condition


@pytest.fixture
def nodes(monkeypatch):
    """What the cluster reports of its machines; this one is "here"."""
    nodes_reported = [{"NodeID": "there", "Alive": True}, {"NodeID": "here", "Alive": True}]

    class Context:
        def get_node_id(self):
            return "here"

    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(ray, "nodes", lambda: nodes_reported)
    return nodes_reported


def test_only_the_loss_of_this_machine_counts(nodes):
    lost = lost_node_condition()
    nodes[0]["Alive"] = False
    assert lost() is None
    nodes[1]["Alive"] = False
    assert "raylet on this machine died" in str(lost()) and "umbra resume" in str(lost())
    del nodes[1]
    assert lost() is not None


def test_a_cluster_that_does_not_answer_is_no_lost_machine(nodes, monkeypatch):
    def silent():
        raise RayError

    lost = lost_node_condition()
    monkeypatch.setattr(ray, "nodes", silent)
    assert lost() is None


@pytest.mark.slow
def test_the_machine_of_a_running_cluster_is_not_lost(embedded):
    assert lost_node_condition()() is None
