"""`submit` and `resume` around a run that is worked through without Ray."""

import io
import json
import os
import signal
import stat
import sys
import time

import pytest

from privacy.errors import BudgetRefused, UmbraError
from privacy.ledger.records import Facts

# What a process started by `--detach` is given in place of Python.
BEGINS = """#!{python}
import sys
sys.path[:0] = {path!r}
from pipeline.home import Home
run = Home.locate().run(sys.argv[4])
resume = ["resume", run.run_id, "--json", "--yes"]
assert sys.argv[1:] == ["-m", "pipeline.cli.main", *resume], sys.argv
run.begin()
run.update(status="done", process=None)
"""
ENDS_AT_ONCE = """#!/bin/sh
echo "umbra: no such thing" >&2
exit 1
"""


@pytest.fixture
def worked(monkeypatch, house):
    """Let `execute` do at once what the stages do, and tell as they tell."""

    def execute(run, home, progress, address=None, workers=None):
        with progress.stage("train", 4) as stage:
            stage.reach(4)
        house.finish(run)
        return run.state()

    monkeypatch.setattr("pipeline.runs.engine.execute", execute)


def test_data_on_stdout_progress_on_stderr(umbra, house, worked, write_spec):
    result = umbra("submit", write_spec())
    assert result.code == 0
    (run,) = house.home.runs()
    assert result.err.splitlines()[0] == f"run {run.run_id}"
    assert "train: begun" in result.err and "train: done" in result.err
    assert "begun" not in result.out
    for part in ("81.2 %", "frechet_gabor", "12.5", "ε ≤ RDP", "passed", "report.html"):
        assert part in result.out
    # The ceiling was measured on private images.
    assert "96.9" not in result.out
    log = run.log_path.read_text()
    assert "train: begun" in log and "train: done" in log


def test_json_alone(umbra, house, worked, write_spec):
    result = umbra("submit", write_spec(), "--json")
    assert result.code == 0
    (run,) = house.home.runs()
    assert result.err == f"run {run.run_id}\n"
    assert result.json["run_id"] == run.run_id
    assert result.json["classifiers"] == [["logreg", 0.8125, None], ["mlp", 0.8125, None]]
    assert result.json["privacy"]["audit"] == "passed"


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_finished_run_that_fails_its_audit_exits_with_4(
    umbra, house, worked, write_spec, monkeypatch, how
):
    finish = type(house).finish

    def damaged(self, run):
        finish(self, run)
        next((run.release / "data").glob("*.parquet")).write_bytes(b"")

    monkeypatch.setattr(type(house), "finish", damaged)
    result = umbra("submit", write_spec(), *how)
    assert result.code == 4
    assert "FAILED" in result.out and "its audit failed" in result.err
    if how:
        assert result.json["privacy"]["audit"].startswith("FAILED")


@pytest.mark.parametrize("facts", [Facts()])
def test_figures_against_a_private_reference_are_not_printed(umbra, house, worked, write_spec):
    result = umbra("submit", write_spec(("    public: true", "    public: false")))
    assert result.code == 0
    assert "the reference is private" in result.out
    for number in ("81.2", "96.9", "12.5"):
        assert number not in result.out + result.err


def test_resume_goes_on_with_the_same_run(umbra, house, worked, blots_spec):
    run = house.reserve(blots_spec())
    result = umbra("resume", run.run_id, "--json")
    assert (result.code, result.json["run_id"]) == (0, run.run_id)
    assert house.kinds().count("reserve") == 1


@pytest.fixture
def interrupted(house, blots_spec, monkeypatch):
    """A run of 20 steps that charged and kept so many; `execute` only says that it was reached."""

    def execute(*arguments):
        raise UmbraError("it goes on")

    def make(charged, kept):
        run = house.reserve(blots_spec(("steps: 4", "steps: 20")))
        house.charge(run, "dp-sgd", charged)
        checkpoint = run.checkpoints / f"step-{kept:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "checkpoint.json").touch()
        return run

    monkeypatch.setattr("pipeline.runs.engine.execute", execute)
    return make


@pytest.mark.parametrize(("charged", "kept", "said"), [(5, 5, "20 of 20"), (5, 3, "18 of 20")])
def test_resume_tells_how_much_will_have_been_trained(umbra, interrupted, charged, kept, said):
    run = interrupted(charged, kept)
    result = umbra("resume", run.run_id)
    assert (result.code, result.out) == (1, "") and "it goes on" in result.err
    assert f"{said} planned steps will have been trained" in result.err
    assert ("lost" in result.err) == (charged > kept)


def test_resume_asks_where_more_than_a_tenth_was_forfeited(umbra, interrupted, monkeypatch):
    run = interrupted(5, 2)
    for refused in (umbra("resume", run.run_id), umbra("resume", run.run_id, "--json", "--detach")):
        assert refused.code == 2 and "it goes on" not in refused.err
        assert "17 of 20" in refused.err + refused.out and "--yes" in refused.err + refused.out
    assert "it goes on" in umbra("resume", run.run_id, "--yes").err
    for answer, code in (("n", 130), ("y", 1)):
        terminal = io.StringIO(f"{answer}\n")
        terminal.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", terminal)
        assert umbra("resume", run.run_id).code == code


def test_a_run_that_was_given_up_is_never_offered_to_be_resumed(umbra, interrupted):
    run = interrupted(5, 5)
    assert umbra("cancel", "--give-up", run.run_id).code == 0
    # As older versions left it, too.
    for _ in range(2):
        result = umbra("resume", run.run_id)
        assert result.code == 2 and "given up" in result.err and "new run" in result.err
        status = umbra("status", run.run_id)
        assert "given up" in status.out and "umbra resume" not in status.out + result.err
        run.update(given_up=False)


def test_status_shows_steps_trained_beside_steps_charged(umbra, interrupted):
    run = interrupted(5, 3)
    assert "3 trained, 5 charged, 20 planned" in umbra("status", run.run_id).out
    expected = {"planned": 20, "charged": 5, "trained": 3}
    assert umbra("status", run.run_id, "--json").json["steps"] == expected


@pytest.mark.parametrize(("error", "code"), [(UmbraError, 1), (BudgetRefused, 3)])
def test_a_run_that_fails(umbra, house, write_spec, monkeypatch, error, code):
    def execute(run, home, progress, address=None, workers=None):
        with progress.stage("train", 4):
            raise error("the disk is full")

    monkeypatch.setattr("pipeline.runs.engine.execute", execute)
    result = umbra("submit", write_spec(), "--json")
    assert result.code == code
    assert result.json == {"error": "the disk is full", "exit_code": code}
    (run,) = house.home.runs()  # it has reserved, and can be resumed
    assert run.state().reservation_id
    assert "train: stopped" in run.log_path.read_text()


def test_a_done_run_is_not_done_again(umbra, finished):
    house, run = finished
    before = house.kinds()
    result = umbra("resume", run.run_id)
    assert (result.code, result.out) == (2, "")
    assert "is done" in result.err
    assert house.kinds() == before


@pytest.fixture
def in_place_of_python(monkeypatch, tmp_path):
    def put(text):
        script = tmp_path / "python"
        script.write_text(text.format(python=sys.executable, path=sys.path))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(script))

    return put


def test_detached(umbra, house, write_spec, in_place_of_python):
    in_place_of_python(BEGINS)
    result = umbra("submit", write_spec(), "--detach", "--json")
    assert (result.code, result.err) == (0, "")
    (run,) = house.home.runs()
    assert result.json == {"run_id": run.run_id}
    assert run.state().attempt == 1  # it has begun when the id is told


@pytest.mark.parametrize("workers", ["0", "-1", "two", "1.5", ""])
def test_invalid_workers(umbra, house, no_ray, write_spec, workers):
    before = house.kinds()
    result = umbra("submit", write_spec(), "--workers", workers)
    assert result.code == 2 and "a number from 1 or 'auto'" in result.err
    assert house.home.runs() == () and house.kinds() == before


@pytest.mark.parametrize(("given", "meant"), [("3", 3), ("auto", "auto"), (None, None)])
def test_workers_of_this_start(umbra, house, write_spec, monkeypatch, given, meant):
    seen = []

    def execute(run, home, progress, address=None, workers=None):
        seen.append(workers)
        house.finish(run)

    monkeypatch.setattr("pipeline.runs.engine.execute", execute)
    monkeypatch.setattr("pipeline.cluster.connection.this_machine", lambda: {"CPU": 8})
    assert umbra("submit", write_spec(), *(["--workers", given] if given else [])).code == 0
    assert seen == [meant]
    assert house.home.runs()[0].spec().resources.workers == 1


def test_more_workers_than_this_machine_has_are_refused(umbra, house, no_ray, write_spec):
    result = umbra("submit", write_spec(), "--workers", "9999")
    assert result.code == 1 and "9999 training workers" in result.err
    assert house.home.runs() == ()


def test_a_jobs_api_works_in_the_background_only(umbra, house, no_ray, write_spec):
    result = umbra("submit", write_spec(), "--address", "http://127.0.0.1:1")
    assert result.code == 2 and "add --detach" in result.err
    assert house.home.runs() == ()


def test_a_jobs_api_that_is_not_there_costs_no_budget(umbra, house, write_spec):
    before = house.kinds()
    result = umbra("submit", write_spec(), "--detach", "--address", "http://127.0.0.1:1", "--json")
    assert result.code == 1 and "could not be reached" in result.json["error"]
    assert house.home.runs() == () and house.kinds() == before


def test_resume_in_the_background(umbra, house, blots_spec, in_place_of_python):
    in_place_of_python(BEGINS)
    run = house.reserve(blots_spec())
    run.update(status="failed")
    result = umbra("resume", run.run_id, "--detach", "--json")
    assert (result.code, result.json) == (0, {"run_id": run.run_id})
    assert run.state().attempt == 1


def test_detached_and_died_at_once(umbra, house, write_spec, in_place_of_python):
    in_place_of_python(ENDS_AT_ONCE)
    result = umbra("submit", write_spec(), "--detach")
    assert (result.code, result.out) == (1, "")
    (run,) = house.home.runs()
    assert f"umbra logs {run.run_id}" in result.err
    assert umbra("logs", run.run_id).out == "umbra: no such thing\n"


def test_sigterm_reaches_the_process_that_works(umbra, house, blots_spec):
    """`cancel` tells the very process that holds the run, and no other."""
    from pipeline.runs.directory import ProcessIdentity

    run = house.reserve(blots_spec())
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        identity = ProcessIdentity(child, _started(child))
        run.update(status="running", process=identity, stage="train")
        assert umbra("status", run.run_id, "--json").json["status"] == "running"
        result = umbra("cancel", run.run_id, "--json")
        assert (result.code, result.json) == (
            0,
            {"run_id": run.run_id, "stopped": True, "refunded": {}},
        )
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        child = 0
        assert umbra("status", run.run_id, "--json").json["status"] == "interrupted"
        assert umbra("cancel", run.run_id, "--json").json["stopped"] is False
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _started(pid):
    from pipeline.runs import directory as process

    return process._started(pid)


def test_json_of_a_run_is_one_object(umbra, house, worked, write_spec):
    out = umbra("submit", write_spec(), "--json").out
    assert json.JSONDecoder().raw_decode(out)[1] == len(out.rstrip("\n"))


def test_a_resume_evaluates_as_corrected(umbra, house, blots_spec, write_spec, monkeypatch):
    run = house.finish(house.reserve(blots_spec()))
    stages = tuple(stage for stage in run.state().stages if stage.name != "evaluate")
    run.update(status="failed", stages=stages)
    seen = []
    monkeypatch.setattr("pipeline.runs.engine.execute", lambda run, *_: seen.append(run))
    same = write_spec(("mlp]", "mlp]\n  neighbours: 3"))
    assert umbra("resume", run.run_id, "--evaluation", same).code == 0
    assert seen[0].evaluated_spec().evaluate.neighbours == 3
    other = write_spec(("epsilon: 8", "epsilon: 7"))
    refused = umbra("resume", run.run_id, "--evaluation", other)
    assert refused.code == 2 and "in more than its evaluation" in refused.err
