"""`runs`, `status` and `cancel` over every state that a run can be in."""

import pytest

from pipeline.runs.directory import ProcessIdentity

GONE = ProcessIdentity(2**22 + 1, "long ago")

STATES = {
    "created": ({}, "umbra resume"),
    "interrupted": ({"status": "running", "process": GONE, "stage": "train"}, "its process died"),
    "failed": (
        {"status": "failed", "stage": "train", "message": "the disk is full"},
        "when the cause is fixed",
    ),
    "cancelled": ({"status": "cancelled", "message": "cancelled"}, "umbra resume"),
    "done": ({"status": "done"}, "umbra export"),
}


@pytest.fixture(params=STATES)
def placed(request, house, blots_spec):
    changes, advice = STATES[request.param]
    run = house.home.new_run(blots_spec())
    if changes:
        run.update(**changes)
    return run, request.param, advice


def test_status(umbra, placed):
    run, name, advice = placed
    said = umbra("status", run.run_id, "--json")
    assert (said.code, said.err) == (0, "")
    assert said.json["status"] == name
    assert advice in said.json["advice"] and run.run_id in said.json["advice"] + said.json["run_id"]
    shown = umbra("status", run.run_id)
    assert shown.out.startswith(f"{run.run_id}: {name}\n")
    assert advice in shown.out and str(run.path) in shown.out
    assert ("the disk is full" in shown.out) == (name == "failed")


def test_runs(umbra, placed):
    run, name, _ = placed
    (row,) = umbra("runs", "--json").json
    assert row["run_id"] == run.run_id and row["status"] == name
    shown = umbra("runs")
    assert run.run_id in shown.out and name in shown.out  # whole, so that it can be copied


def test_cancel_where_nothing_runs(umbra, placed):
    run, _, _ = placed
    before = run.state()
    result = umbra("cancel", run.run_id)
    assert (result.code, result.out) == (0, f"{run.run_id}: nothing was running\n")
    assert run.state() == before


def test_no_runs(umbra):
    result = umbra("runs")
    assert (result.code, result.err) == (0, "")
    assert "umbra submit SPEC" in result.out
    assert umbra("runs", "--json").json == []


def test_a_damaged_run_does_not_hide_the_others(umbra, finished, blots_spec):
    house, run = finished
    other = house.home.new_run(blots_spec())
    other.state_path.unlink()
    said = {row["run_id"]: row["status"] for row in umbra("runs", "--json").json}
    assert said == {run.run_id: "done", other.run_id: "damaged"}


def test_the_beginning_of_an_id_is_enough(umbra, finished):
    _, run = finished
    assert umbra("status", "blots", "--json").json["run_id"] == run.run_id


def test_giving_up_returns_what_was_never_charged(umbra, house, blots_spec):
    run = house.reserve(blots_spec())
    plan = house.budget.reservation(run.state().reservation_id).plan
    before = house.budget.odometer("blots")
    assert before.left < before.epsilon
    result = umbra("cancel", "--give-up", run.run_id, "--json")
    assert result.code == 0
    assert result.json["refunded"] == {part.name: part.mechanism.steps for part in plan}
    after = house.budget.odometer("blots")
    assert (after.left, after.open_reservations) == (after.epsilon, 0)
    assert umbra("status", run.run_id, "--json").json["status"] == "cancelled"


def test_giving_up_keeps_what_was_charged(umbra, house, blots_spec):
    run = house.reserve(blots_spec())
    reserved = run.state().reservation_id
    part = house.budget.reservation(reserved).plan[-1]
    house.charge(run, part.name, 1)
    said = umbra("cancel", "--give-up", run.run_id, "--json").json["refunded"]
    assert said[part.name] == part.mechanism.steps - 1
    assert house.budget.odometer("blots").spent > 0


def test_a_finished_run_has_nothing_to_give_back(umbra, finished):
    _, run = finished
    result = umbra("cancel", "--give-up", run.run_id)
    assert result.code == 2
    assert "nothing to give back" in result.err


def test_a_lost_key_is_not_replaced(umbra, finished):
    house, _ = finished
    house.home.key_path.unlink()
    result = umbra("budget", "declare", "more", "--epsilon", "1", "--delta", "1e-5")
    assert result.code == 2
    assert "is missing" in result.err and "backup" in result.err
    assert not house.home.key_path.exists()
