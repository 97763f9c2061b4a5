"""Ends what an embedded cluster leaves running when the process that started it is gone.

Ray ends its own processes, most of them at once; but one that cannot tell a dead GCS of its end
tries for a minute, and a killed process takes nobody along. The reaper is a small process beside
the driver. It sleeps until its standard input ends, which the system sees to however the driver
ends, and then kills the cluster's processes and removes its folder.

Whoever has a file in that folder open is of the cluster: all of Ray's processes and their children
write their logs there. (A mark in the environment would not do: Ray's agents write their names over
it.)
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# After a kill it is looked again: a process may just have started another.
_ROUNDS, _SECONDS = 200, 0.05


@contextmanager
def reaped(folder: str) -> Iterator[None]:
    """Let no process of the cluster that is started in the block outlive it, or this process.

    Args:
        folder: the cluster's own, which is gone after the block, too.
    """
    reaper = subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", __file__, str(Path(folder).resolve()), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    try:
        yield
    finally:
        reaper.communicate()


def reap(folder: str, spared: int) -> None:
    """Kill every process that has a file in a folder open, but one, and remove the folder.

    Open files are found in /proc; on a system without it only the folder is removed, and Ray is
    left to end its processes by itself.
    """
    for _ in range(_ROUNDS):
        left = [pid for pid in _processes() if pid != spared and _has_open(pid, folder)]
        if not left:
            break
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


def _processes() -> list[int]:
    with suppress(FileNotFoundError):
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return []


def _has_open(pid: int, folder: str) -> bool:
    with suppress(OSError):  # it is gone, or of another user
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if descriptor.readlink().is_relative_to(folder):
                    return True
    return False


if __name__ == "__main__":
    sys.stdin.buffer.read()
    reap(sys.argv[1], int(sys.argv[2]))
