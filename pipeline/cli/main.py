"""`umbra`: load the commands, run one, and turn every error into a sentence and an exit code."""

import atexit
import errno
import gc
import io
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from pipeline.cli.output import printable, show_help, silence_output
from privacy.errors import UmbraError

_TRACEBACK = "UMBRA_TRACEBACK"
_BAD_USAGE = 2
_INTERRUPTED = 130
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_DISK_ADVICE = (
    ". Something could not be written, standard output included: free or repair the disk, then "
    "repeat the command; `umbra resume` continues a run that had started"
)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; an error is a sentence, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal can show an ε
    # At exit the interpreter collects garbage several times, which takes seconds after a run.
    atexit.register(gc.freeze)
    with _libraries_silenced():
        try:
            code = load_commands().main(arguments, prog_name="umbra", standalone_mode=False)
        except UmbraError as error:
            code = _fail(str(error), error.exit_code, as_json)
        except click.ClickException as error:
            code = _fail(_usage(error), _BAD_USAGE, as_json)
        except (KeyboardInterrupt, click.Abort):
            code = _fail("interrupted", _INTERRUPTED, as_json)
        except Exception as error:
            code = _fail_unexpectedly(error, as_json)
    sys.exit(code if isinstance(code, int) else 0)


def load_commands() -> click.Group:
    """Return the group of all commands."""
    # Their modules import no large library: a command imports what it needs when it runs.
    from pipeline.cli import audit, budget, runs, submit

    @click.group(
        context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True
    )
    @click.version_option(package_name="umbra-synth", prog_name="umbra")
    @click.pass_context
    def umbra(context: click.Context) -> None:
        """Synthetic image data sets under differential privacy.

        Exit codes: 0 fine, 1 failed, 2 bad usage or spec, 3 budget refused, 4 integrity broken.
        """
        show_help(context)

    commands: tuple[click.Command, ...] = (
        *(submit.plan, submit.submit, runs.runs, runs.status, runs.logs, submit.resume),
        *(runs.cancel, runs.export, budget.budget, budget.ledger, audit.audit, runs.report),
    )
    for command in commands:
        umbra.add_command(command)
    return umbra


@contextmanager
def _libraries_silenced() -> Iterator[None]:
    """Keep threads and loggers of libraries from printing tracebacks: these may be private."""
    # A full disk, for one, makes Ray's log files fail in the middle of a run.
    if os.environ.get(_TRACEBACK) == "1":
        yield
        return
    hook, logged = threading.excepthook, logging.raiseExceptions
    threading.excepthook, logging.raiseExceptions = lambda _: None, False
    try:
        yield
    finally:
        threading.excepthook, logging.raiseExceptions = hook, logged


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context else ""
    return error.format_message() + hint


def _fail_unexpectedly(error: Exception, as_json: bool) -> int:
    # The error's text may hold private values: it is printed only to a developer who asks for it.
    if os.environ.get(_TRACEBACK) == "1":
        traceback.print_exc()
    message = (
        f"unexpected {type(error).__name__}: this is a fault of Umbra. Set {_TRACEBACK}=1 "
        "to see where (the text may hold private values: do not share it)"
    )
    if isinstance(error, FileNotFoundError) and not error.filename:
        # Raised by `tempfile` while a library was imported: a full disk has no folder to write to.
        message = (
            "there is no folder for temporary files: free or repair the disk, or set TMPDIR to a "
            "folder that can be written to, then repeat the command"
        )
    elif isinstance(error, OSError) and error.errno:
        # The system's own words and a path: a full disk or a missing right is no fault of Umbra.
        where = f"{error.filename}: " if error.filename else ""
        advice = _DISK_ADVICE if error.errno in _DISK_ERRORS else ""
        message = f"{where}{os.strerror(error.errno)}{advice}"
    return _fail(message, 1, as_json)


def _fail(message: str, code: int, as_json: bool) -> int:
    message = printable(message)
    try:
        if as_json:
            click.echo(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False))
        sys.stdout.flush()
    except OSError:
        # Standard output is closed or full; standard error still gets the message.
        silence_output()
    with suppress(OSError):
        click.echo(f"umbra: {message}", err=True)
    return code


if __name__ == "__main__":
    main()
