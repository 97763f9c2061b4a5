"""End what an embedded cluster leaves running when the process that started it is gone.

Most of Ray's processes end by themselves, but not all, and some only after a minute. The reaper is
a small process beside the driver. It sleeps until its standard input ends, which the system ensures
however the driver ends, and then kills the cluster's processes and removes its folder.
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
    """Let neither the cluster in `folder` nor the folder outlive the block, or this process."""
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
    """Kill every process but one that has a file in the folder open, and remove the folder."""
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
    # On a system without /proc Ray is left to end its processes by itself.
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _has_open(pid: int, folder: str) -> bool:
    # All of Ray's processes and their children write logs to the cluster's folder. A mark in the
    # environment would not do: Ray's agents write their names over it.
    with suppress(OSError):  # it is gone, or of another user
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if descriptor.readlink().is_relative_to(folder):
                    return True
    return False


if __name__ == "__main__":
    sys.stdin.buffer.read()
    reap(sys.argv[1], int(sys.argv[2]))
