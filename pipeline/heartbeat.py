"""A sign of life in the run's folder, for those who share the folder and not the machine.

A process on another machine cannot be looked up. So whoever works on a run touches a file every few
seconds, and looks there whether it has been asked to stop.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pipeline.polling import polled
from pipeline.run_directory import RunDirectory

SECONDS = 5.0  # between two beats
SILENT = 120.0  # seconds without one: clocks differ a little, and shared folders are slow

_BEAT = "alive"
_STOP = "stop-asked"


@contextmanager
def beating(run: RunDirectory) -> Iterator[None]:
    """Give signs of life during the block; a request to stop arrives in it as SIGTERM."""
    stop, beat = run.path / _STOP, run.path / _BEAT
    stop.unlink(missing_ok=True)  # asked of an earlier process
    beat.touch()

    def look() -> None:
        # A full disk or a folder out of reach for a while ends no training.
        with suppress(OSError):
            os.utime(beat)
            if stop.exists():
                stop.unlink()
                os.kill(os.getpid(), signal.SIGTERM)

    with polled(look, SECONDS):
        yield


def seconds_silent(run: RunDirectory) -> float | None:
    """Return the time since the last sign of life, by this machine's clock; None without one."""
    try:
        return max(0.0, time.time() - (run.path / _BEAT).stat().st_mtime)
    except OSError:
        return None


def ask_to_stop(run: RunDirectory) -> None:
    """Ask whoever works on the run, wherever that is, to stop as SIGTERM would."""
    (run.path / _STOP).touch()
