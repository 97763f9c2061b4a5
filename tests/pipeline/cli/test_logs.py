import json

import pytest

from pipeline.runs.directory import ProcessIdentity, RunDirectory


@pytest.fixture
def logged(house, blots_spec):
    run = house.home.new_run(blots_spec())
    run.log_path.write_text("train: begun\ntrain: 2/4 (50 %)\n")
    return run


@pytest.mark.parametrize("follow", [[], ["--follow"]])
@pytest.mark.parametrize("status", ["created", "failed", "cancelled", "done"])
def test_a_run_at_rest(umbra, logged, status, follow):
    logged.update(status=status)
    result = umbra("logs", logged.run_id, *follow)
    assert (result.code, result.err) == (0, "")
    assert result.out == "train: begun\ntrain: 2/4 (50 %)\n"


def test_one_object_a_line(umbra, logged):
    lines = umbra("logs", logged.run_id, "--json").out.splitlines()
    assert [json.loads(line)["line"] for line in lines] == ["train: begun", "train: 2/4 (50 %)"]


def test_no_log_yet(umbra, house, blots_spec):
    run = house.home.new_run(blots_spec())
    result = umbra("logs", run.run_id)
    assert (result.code, result.out) == (0, "")
    assert not run.log_path.exists()


def test_a_damaged_state_does_not_hide_the_log(umbra, logged):
    logged.state_path.write_text("{")
    assert umbra("logs", logged.run_id).code == 0
    assert umbra("logs", logged.run_id, "-f").code == 4


def test_a_process_that_died_ends_it(umbra, logged):
    logged.update(status="running", process=ProcessIdentity(2**22 + 1, "long ago"))
    assert umbra("logs", logged.run_id, "--follow").code == 0


def test_it_follows_to_the_last_line(umbra, logged, monkeypatch):
    """Lines that come in pieces stay whole; what comes right before the end is not lost."""
    logged.update(status="running", process=ProcessIdentity.current())
    pieces = iter(["train: dö".encode()[:-1], "ö".encode()[-1:] + b"ne\nsynth", b"esize: begun\n"])
    real = RunDirectory.state

    def write(text):
        with logged.log_path.open("ab") as log:
            log.write(text)

    def sleep(seconds):
        piece = next(pieces, None)
        if piece is not None:
            write(piece)
            return
        monkeypatch.setattr(RunDirectory, "state", state)

    def state(run):
        monkeypatch.setattr(RunDirectory, "state", real)
        now = real(run)
        write("report: döne".encode())  # between the look at the state and its answer
        return now.model_copy(update={"status": "done"})

    monkeypatch.setattr("pipeline.cli.runs.time.sleep", sleep)
    result = umbra("logs", logged.run_id, "--follow")
    assert result.code == 0
    assert result.out.splitlines()[2:] == ["train: döne", "synthesize: begun", "report: döne"]


def test_control_characters_stay_out(umbra, logged):
    logged.log_path.write_bytes(b"a\x1b[2Jb\xff\n")
    assert umbra("logs", logged.run_id).out == "a\ufffd[2Jb\ufffd\n"
