"""Ends what an embedded cluster leaves running when the process that started it is gone.

Ray ends its own processes, most of them at once; but one that cannot tell a dead GCS of its end
tries for a minute, and a killed process takes nobody along. The reaper is a small process beside
the driver. It sleeps until its standard input ends, which the system sees to however the driver
ends, and then kills every process that bears the cluster's mark and removes the cluster's folder.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

# In the environment of every process of the cluster: which folder is theirs.
_MARK = "UMBRA_CLUSTER_FOLDER"
_ROUNDS = 100  # at most: a process that is just being started has its mark a moment later


@contextmanager
def reaped(folder: str) -> Iterator[None]:
    """Mark the processes that are started in the block, and let none of them outlive it.

    Args:
        folder: the cluster's own, which is gone after the block, too.
    """
    reaper = subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", __file__, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    os.environ[_MARK] = folder
    try:
        yield
    finally:
        del os.environ[_MARK]
        reaper.communicate()


def reap(folder: str) -> None:
    """Kill every process of this user that bears a cluster's mark, and remove its folder."""
    for _ in range(_ROUNDS):
        left = [process for process in psutil.process_iter() if _marked(process, folder)]
        if not left:
            break
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=0.1)
    shutil.rmtree(folder, ignore_errors=True)


def _marked(process: psutil.Process, folder: str) -> bool:
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == folder
    return False


if __name__ == "__main__":
    sys.stdin.buffer.read()
    reap(sys.argv[1])
