"""How every command ends: help, usage, errors, pipes."""

import atexit
import gc
import logging
import os
import subprocess
import sys
import threading
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline.cli.main import load_commands, main
from privacy.errors import BudgetRefused, IntegrityBroken, InvalidRequest, LedgerUnavailable

FULL = Path("/dev/full")
GROUPS = ("budget", "ledger")
cli = load_commands()
COMMANDS = [
    *((name,) for name in cli.commands),
    *((group, name) for group in GROUPS for name in cli.commands[group].commands),
]


def test_all_commands_of_the_design_are_there():
    assert set(cli.commands) == {
        *("plan", "submit", "runs", "status", "logs", "resume", "cancel", "export", "budget"),
        *("ledger", "audit", "report"),
    }


@pytest.mark.parametrize("command", [(), *COMMANDS], ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(umbra, command, flag):
    result = umbra(*command, flag)
    assert result.code == 0
    assert result.out.startswith(f"Usage: {' '.join(('umbra', *command))} [OPTIONS]")
    assert result.err == ""


def test_every_command_has_a_json_option(umbra):
    for command in COMMANDS:
        if len(command) == 2 or command[0] not in GROUPS:
            assert "--json" in umbra(*command, "--help").out


def test_version(umbra):
    result = umbra("--version")
    assert (result.code, result.out) == (0, f"umbra, version {version('umbra-synth')}\n")


@pytest.mark.parametrize("group", [(), *((name,) for name in GROUPS)])
def test_a_group_without_a_command_prints_its_help(umbra, group):
    result = umbra(*group)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith(f"Usage: {' '.join(('umbra', *group))} [OPTIONS]")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sumbit"], "No such command 'sumbit'"),
        (["plan"], "Missing argument 'SPEC'. (see `umbra plan --help`)"),
        (["runs", "--jsno"], "No such option"),
        (["budget", "declare", "x", "--epsilon", "ten"], "'ten' is not a valid float"),
        (["status", "a", "b"], "unexpected extra argument"),
    ],
)
def test_bad_usage(umbra, arguments, told):
    result = umbra(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("umbra: ")
    assert told in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest, 2),
        (BudgetRefused, 3),
        (IntegrityBroken, 4),
        (LedgerUnavailable, 1),
    ],
)
def test_errors_for_users(umbra, monkeypatch, error, code):
    def fail(self):
        raise error("expected this, found that")

    monkeypatch.setattr("pipeline.home.Home.runs", fail)
    plain = umbra("runs")
    assert (plain.code, plain.out) == (code, "")
    assert plain.err == "umbra: expected this, found that\n"
    as_json = umbra("runs", "--json")
    assert as_json.code == code
    assert as_json.json == {"error": "expected this, found that", "exit_code": code}
    assert as_json.err == plain.err


def test_the_text_of_an_unexpected_error_is_not_printed(umbra, monkeypatch):
    def fail(self):
        raise ValueError("pixel 17 of patient 4 is 255")

    monkeypatch.setattr("pipeline.home.Home.runs", fail)
    for arguments in (["runs"], ["runs", "--json"]):
        result = umbra(*arguments)
        assert result.code == 1
        assert "unexpected ValueError" in result.err
        assert "patient" not in result.out + result.err
    assert result.json["exit_code"] == 1


def test_a_developer_can_ask_for_the_traceback(monkeypatch, capsys):
    def fail(self):
        raise ValueError("here")

    monkeypatch.setattr("pipeline.home.Home.runs", fail)
    monkeypatch.setenv("UMBRA_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        main(["runs"])
    assert "ValueError: here" in capsys.readouterr().err


@pytest.mark.parametrize(("wanted", "shown"), [(None, False), ("1", True)])
def test_libraries_print_no_traceback_unless_asked_to(monkeypatch, capsys, wanted, shown):
    """A thread that dies, and a log file that cannot be written."""

    def fail():
        raise ValueError("pixel 17 of patient 4 is 255")

    class Full(logging.Handler):
        def emit(self, record):
            try:
                fail()
            except ValueError:
                self.handleError(record)

    def work(self):
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        Full().handle(logging.makeLogRecord({}))
        return ()

    told = []
    monkeypatch.setattr(threading, "excepthook", lambda of: told.append(of.exc_type))
    monkeypatch.setattr("pipeline.home.Home.runs", work)
    if wanted is not None:
        monkeypatch.setenv("UMBRA_TRACEBACK", wanted)
    with pytest.raises(SystemExit):
        main(["runs", "--json"])
    assert told == ([ValueError] if shown else [])
    assert ("patient" in capsys.readouterr().err) == shown
    assert logging.raiseExceptions


def test_an_error_of_the_system_is_printed_in_its_words(umbra, monkeypatch):
    def full(self):
        raise OSError(28, "private text", "/some/file")

    monkeypatch.setattr("pipeline.home.Home.runs", full)
    result = umbra("runs")
    assert result.code == 1
    assert result.err.startswith("umbra: /some/file: No space left on device. Something could not")
    assert result.err.endswith("`umbra resume` continues a run that had started\n")


def test_an_interrupt(umbra, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.home.Home.runs", interrupt)
    result = umbra("runs")
    assert (result.code, result.err.strip()) == (130, "umbra: interrupted")


def test_an_interrupt_while_libraries_are_loaded(umbra, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.cli.main.load_commands", interrupt)
    result = umbra("runs")
    assert (result.code, result.err.strip()) == (130, "umbra: interrupted")


def test_no_library_is_loaded_where_its_errors_are_not_caught():
    program = "import sys, pipeline.cli.main; print({'torch', 'ray', 'mlflow'} & {*sys.modules})"
    found = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert found == "set()\n"


def test_control_characters_do_not_reach_the_terminal(umbra):
    result = umbra("status", "\x1b[2J\x07run")
    assert result.code == 2
    assert "\x1b" not in result.err and "\x07" not in result.err


def command(*arguments, **options):
    # As the installed script does it, without needing it to be on the PATH.
    program = [sys.executable, "-c", "from pipeline.cli.main import main; main()", *arguments]
    return subprocess.Popen(program, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture
def closed_pipe():
    """The end to write to of a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_a_process_with_a_closed_pipe_ends_quietly(house, closed_pipe):
    process = command("budget", "show", stdout=closed_pipe)
    os.close(closed_pipe)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["runs"], 0), (["runs", "--json"], 0), (["logs", "blots"], 0), (["audit"], 4)],
)
def test_a_command_keeps_its_exit_code_without_a_reader(
    finished, tamper, closed_pipe, capsys, arguments, code
):
    house, run = finished
    run.log_path.write_text("train: begun\n")
    tamper(house, "UPDATE umbra_ledger SET created_at = 'then' WHERE kind = 'charge'")
    with (
        os.fdopen(closed_pipe, "w") as stdout,  # which is flushed at the end
        redirect_stdout(stdout),
        pytest.raises(SystemExit) as ended,
    ):
        main(arguments)
    assert (ended.value.code, capsys.readouterr().err) == (code, "")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_no_room_for_the_output(finished):
    with FULL.open("w") as full:
        process = command("runs", "--json", stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("umbra: No space left on device. Something could not be written") and (
        err.count("\n") == 1
    )


def test_a_terminal_without_greek(house):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    process = command("budget", "show", stdout=subprocess.PIPE, env=environment)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "blots" in out and "8.5" in out


def test_json_is_not_escaped_to_ascii(umbra, house):
    declare = ["budget", "declare", "blots", "--epsilon", "99", "--delta", "1e-3", "--json"]
    result = umbra(*declare)
    assert "ε=8.5" in result.out and "ε=8.5" in result.json["error"]


def test_the_end_of_a_command_does_not_wait_for_the_interpreter(monkeypatch):
    registered = []
    monkeypatch.setattr(atexit, "register", registered.append)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert registered == [gc.freeze]
