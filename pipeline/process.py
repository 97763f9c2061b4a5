"""Which process works on a run, and whether it still lives."""

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessIdentity:
    """A process id and its start: the two together are never given to another process of `host`.

    `host` is empty where it was not noted, which older runs did not: such a process was one here.
    """

    pid: int
    started: str
    host: str = ""

    @classmethod
    def current(cls) -> "ProcessIdentity":
        """The process that asks."""
        return cls(os.getpid(), _started(os.getpid()) or "", socket.gethostname())

    def here(self) -> bool:
        """Whether it is a process of this machine: of another nothing can be looked up."""
        return self.host in {"", socket.gethostname()}

    def alive(self) -> bool:
        """Whether this very process, not a later one with its id, still runs here."""
        return self.here() and bool(self.started) and _started(self.pid) == self.started


def _started(pid: int) -> str | None:
    """A text that marks when `pid` began; None for a process that is gone or a zombie."""
    if (_PROC / "self" / "stat").exists():
        return _started_by_proc(pid)
    # macOS has no /proc; POSIX ps knows the start to the second.
    shown = subprocess.run(  # noqa: S603
        ["ps", "-o", "lstart=", "-p", str(pid)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout.strip() or None


def _started_by_proc(pid: int) -> str | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # The second field is the command in brackets and may hold anything, brackets included.
    state, *fields = stat.rpartition(")")[2].split()
    if state in {"Z", "X"}:
        return None
    return f"{boot}:{fields[18]}"  # field 22 of proc(5): clock ticks from boot to start
