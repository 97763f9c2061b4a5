"""Processes to measure in; their CPU time and memory, from /proc on Linux."""

import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")
# Fields of /proc/<pid>/stat after the command in brackets (proc_pid_stat(5)).
_PARENT, _USER, _SYSTEM = 1, 11, 12


def start(module: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a module in a process."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def last_line(process: subprocess.Popen[str]) -> str:
    """Wait for a process to end and return the last line that it printed.

    Raises:
        RuntimeError: it failed; with its standard error.
    """
    shown, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{process.args} failed:\n{errors}")
    return shown.splitlines()[-1]


def cpu_seconds(root: int, proc: Path = _PROC) -> dict[int, float]:
    """Return seconds of CPU time by process id, of `root` and all its descendants.

    Empty where the system has no /proc.
    """
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    tick = os.sysconf("SC_CLK_TCK")
    for stat in proc.glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        pid = int(stat.parent.name)
        parents[pid] = int(fields[_PARENT])
        seconds[pid] = (int(fields[_USER]) + int(fields[_SYSTEM])) / tick
    return {pid: taken for pid, taken in seconds.items() if _descends(pid, root, parents)}


def others(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Return the CPU seconds of all processes but the busiest between two readings."""
    taken = [after[pid] - before.get(pid, 0.0) for pid in after]
    return sum(taken) - max(taken, default=0.0)


def peak_bytes(status: Path = _PROC / "self/status") -> int:
    """Return the peak memory of this process."""
    if status.exists():
        # Not getrusage: a child starts from the peak of its parent.
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _descends(pid: int, root: int, parents: Mapping[int, int]) -> bool:
    while pid != root and pid in parents:
        pid = parents[pid]
    return pid == root
