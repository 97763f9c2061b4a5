"""Waits for Ray end when a condition holds; what is well, or ends by itself, is left alone."""

import time
from types import SimpleNamespace

import pytest

from pipeline.cluster import calls as subject
from pipeline.cluster.calls import WorkerFailed, abort_when, check_abort_conditions, get_result
from privacy.errors import BudgetRefused, DataError


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(subject, "monotonic", lambda: now.seconds)
    return now


class Condition:
    """Returns what it is set to."""

    def __init__(self, reason=None):
        self.reason = reason

    def __call__(self):
        return self.reason


def test_a_condition_that_holds_for_its_grace_period_is_raised(clock):
    condition = Condition(DataError("full"))
    with pytest.raises(DataError, match="full"), abort_when(condition, grace_period=20):
        check_abort_conditions()
        clock.seconds += 19.9
        check_abort_conditions()
        clock.seconds += 0.1
        check_abort_conditions()


def test_a_condition_that_stops_holding_begins_its_grace_period_anew(clock):
    condition = Condition(DataError("full"))
    with abort_when(condition, grace_period=20):
        check_abort_conditions()
        condition.reason = None
        check_abort_conditions()
        condition.reason = DataError("full again")
        clock.seconds += 40
        check_abort_conditions()


def test_a_condition_counts_only_within_its_block():
    with abort_when(Condition(DataError("full")), grace_period=0):
        pass
    check_abort_conditions()


def test_an_error_for_users_is_not_replaced():
    with (
        pytest.raises(BudgetRefused, match="refused"),
        abort_when(Condition(DataError("full")), grace_period=0),
    ):
        raise BudgetRefused("refused")


@pytest.mark.parametrize("consequence", [ConnectionError("lost"), WorkerFailed("a worker failed")])
def test_a_consequence_is_replaced_by_the_reason(consequence):
    with pytest.raises(DataError, match="why") as raised, abort_when(Condition(DataError("why"))):
        raise consequence
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_other_errors_stay_as_they_are_while_no_condition_holds(error):
    with pytest.raises(error), abort_when(Condition(), grace_period=0):
        raise error


@pytest.mark.slow
def test_a_wait_for_ray_ends_when_a_condition_holds(embedded, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(subject, "_SECONDS_BETWEEN_CHECKS", 0.1)
    task = ray.remote(lambda: time.sleep(60)).remote()
    condition = Condition(DataError("why"))
    with pytest.raises(DataError, match="why"), abort_when(condition, grace_period=0):
        get_result(task)
    ray.cancel(task, force=True)
