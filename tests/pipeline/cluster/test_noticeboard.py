"""Notices on a real cluster's table: what is put here is read in every process, and then gone."""

import pytest
import ray
from ray.exceptions import RpcError
from ray.experimental import internal_kv

from pipeline.cluster import messages as progress_subject
from pipeline.cluster.messages import Noticeboard, ProgressBoard, Refusal
from privacy.errors import BudgetRefused, DataError, UmbraError


def _elsewhere(function, *of):
    """Call a function in another process of the cluster."""
    return ray.get(ray.remote(lambda: function(*of)).options(num_cpus=0).remote())


@pytest.mark.slow
def test_what_another_process_puts_is_read_here_until_it_is_cleared(embedded):
    board, other = Noticeboard(), Noticeboard()
    other.put("a", "of another")
    assert board.get("a") is None and board.everything() == {}
    _elsewhere(board.put, "a", (1, "ä"))
    _elsewhere(board.put, "b", [2.5])
    assert board.get("a") == (1, "ä")
    board.put("a", 3)
    assert _elsewhere(board.everything) == {"a": 3, "b": [2.5]}
    board.remove("b")
    board.remove("never there")
    assert board.everything() == {"a": 3}
    board.clear()
    assert board.everything() == {} and other.get("a") == "of another"
    other.clear()


@pytest.mark.slow
def test_the_first_refusal_is_the_one_that_is_read(embedded):
    refusal = Refusal()
    assert refusal.read() is None
    _elsewhere(refusal.tell, BudgetRefused("first"))
    _elsewhere(refusal.tell, DataError("second"))
    told = refusal.read()
    assert type(told) is BudgetRefused and str(told) == "first" and told.exit_code == 3
    refusal.clear()
    assert refusal.read() is None


@pytest.mark.slow
def test_the_newest_count_of_every_part_is_shown_and_the_last_one_always(embedded, monkeypatch):
    board = ProgressBoard()
    monkeypatch.setattr(progress_subject, "_SECONDS", 1e9)
    board.tell("a", 1, 10)
    board.tell("a", 2, 10)  # too soon after the first
    assert board.read() == {"a": 1}
    board.tell("a", 10, 10)
    monkeypatch.setattr(progress_subject, "_SECONDS", 0.0)
    board.tell("b", 4, 5)
    assert board.read() == {"a": 10, "b": 4}
    board.forget("a")
    assert board.read() == {"b": 4}
    board.clear()
    assert board.read() == {}


@pytest.fixture
def silent(monkeypatch):
    """A cluster that does not answer."""

    def fail(*_, **__):
        raise RpcError("from 10.0.0.9: connection refused")

    for name in ("get", "put", "del", "list"):
        monkeypatch.setattr(internal_kv, f"_internal_kv_{name}", fail)


def test_a_cluster_that_does_not_answer_is_told_in_words(silent):
    board = Noticeboard()
    asked = (
        lambda: board.put("a", 1),
        lambda: board.put_first("a", 1),
        lambda: board.get("a"),
        lambda: board.remove("a"),
        board.everything,
        board.clear,
    )
    for ask in asked:
        with pytest.raises(UmbraError, match=r"does not answer.*RpcError") as told:
            ask()
        assert "10.0.0.9" not in str(told.value)


def test_nobody_stops_for_want_of_progress_but_a_refusal_is_never_lost(silent):
    board = ProgressBoard()
    board.tell("a", 1, 1)
    board.forget("a")
    board.clear()
    assert board.read() == {}
    with pytest.raises(UmbraError):
        Refusal().tell(DataError("refused"))
    with pytest.raises(UmbraError):
        Refusal().read()
    Refusal().clear()
