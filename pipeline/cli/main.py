"""`umbra`: how it starts, and how every error ends."""

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

from pipeline.cli.output import printable, silence_output
from privacy.errors import UmbraError

_TRACEBACK = "UMBRA_TRACEBACK"
_BAD_USAGE = 2
_INTERRUPTED = 130
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_ROOM = (
    ". Something could not be written, standard output included: free or repair the disk, then "
    "repeat the command; `umbra resume` goes on with a run that was begun"
)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; an error is a sentence, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal can show an ε
    # The interpreter's end looks several times through all that is alive, for seconds after a run.
    atexit.register(gc.freeze)
    with _libraries_silent():
        code = _run(sys.argv[1:] if arguments is None else arguments)
    sys.exit(code)


@contextmanager
def _libraries_silent() -> Iterator[None]:
    """Let no library's thread or logger write a trace of its own, which may hold private values.

    A full disk, for one, makes the log files of Ray fail in the middle of a run.
    """
    if os.environ.get(_TRACEBACK) == "1":
        yield
        return
    hook, logged = threading.excepthook, logging.raiseExceptions
    threading.excepthook, logging.raiseExceptions = lambda _: None, False
    try:
        yield
    finally:
        threading.excepthook, logging.raiseExceptions = hook, logged


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        code = _commands().main(arguments, prog_name="umbra", standalone_mode=False)
    except UmbraError as error:
        return _fail(str(error), error.exit_code, as_json)
    except click.ClickException as error:
        return _fail(_usage(error), _BAD_USAGE, as_json)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", _INTERRUPTED, as_json)
    except Exception as error:
        return _unforeseen(error, as_json)
    return code if isinstance(code, int) else 0


def _commands() -> click.Group:
    """Load the commands with all libraries, which takes seconds and may fail as anything may.

    Raises:
        UmbraError: the system refused something; nothing private was read yet.
    """
    try:
        from pipeline.cli.commands import cli
    except OSError as error:
        raise UmbraError(
            f"Umbra's libraries cannot be loaded ({error.strerror or error}): free or repair the "
            "disk, let TMPDIR be a folder that can be written to, then repeat the command"
        ) from error
    return cli


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context else ""
    return error.format_message() + hint


def _unforeseen(error: Exception, as_json: bool) -> int:
    # A text may hold private values; a developer asks for it by name.
    if os.environ.get(_TRACEBACK) == "1":
        traceback.print_exc()
    if isinstance(error, OSError) and error.errno:
        # The system's own words and a path: a full disk or a missing right is no fault of ours.
        where = f"{error.filename}: " if error.filename else ""
        advice = _ROOM if error.errno in _NO_ROOM else ""
        return _fail(f"{where}{os.strerror(error.errno)}{advice}", 1, as_json)
    return _fail(
        f"unexpected {type(error).__name__}: this is a fault of Umbra. Set {_TRACEBACK}=1 "
        "to see where (the text may hold private values: do not share it)",
        1,
        as_json,
    )


def _fail(message: str, code: int, as_json: bool) -> int:
    message = printable(message)
    try:
        if as_json:
            error = {"error": message, "exit_code": code}
            click.echo(json.dumps(error, ensure_ascii=False))
        sys.stdout.flush()
    except OSError:
        # Nobody reads it, or there is no room for it: standard error is told all the same.
        silence_output()
    with suppress(OSError):
        click.echo(f"umbra: {message}", err=True)
    return code


if __name__ == "__main__":
    main()
