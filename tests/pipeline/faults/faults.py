"""One fault in one run: what goes wrong, and when."""

import json
import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from tests.pipeline.faults.small_runs import Site, Start

KINDS = ("worker", "sampler", "raylet", "gcs", "driver", "disk", "ledger", "database")
# Where a fault may fall, and for about how many seconds after that began. Whoever dies has to be
# there first: a fault waits for its victim.
_WINDOWS = {
    "start": 12.0,  # the command has been given
    "ray": 15.0,  # Ray is there
    "steps": 5.0,  # the first private step has begun
    "synthesize": 5.0,
}
_MAY_FALL = {
    "worker": ("ray", "steps"),
    "sampler": ("synthesize",),
    "raylet": ("ray", "steps", "synthesize"),
    "gcs": ("ray", "steps", "synthesize"),
    "driver": tuple(_WINDOWS),
    "disk": tuple(_WINDOWS),
    "ledger": tuple(_WINDOWS),
    "database": tuple(_WINDOWS),
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong in a run.

    Attributes:
        kind: one of `KINDS`: a process of that name is killed; "disk" is full; the "ledger", a
            file, is locked by somebody else; the "database" that keeps the ledger crashes and is
            back for the next start.
        phase: what has to have begun.
        seconds: after that.
        workers: training workers of the run.
    """

    kind: str
    phase: str
    seconds: float
    workers: int

    @classmethod
    def draw(cls, dice: random.Random, kinds: Sequence[str] = KINDS) -> "Fault":
        """Draw one at random."""
        kind = dice.choice(kinds)
        phase = dice.choice(_MAY_FALL[kind])
        seconds = round(dice.uniform(0, _WINDOWS[phase]), 2)
        return cls(kind, phase, seconds, dice.choice((1, 1, 2)))


class Injection:
    """A fault on its way into a start of a run; `poll` often until the start has ended."""

    def __init__(self, fault: Fault, site: Site, start: Start) -> None:
        self._fault, self._place, self._start = fault, site, start
        self._began: float | None = None
        self._held: sqlite3.Connection | None = None
        self.happened_after: float | None = None
        self._started = time.monotonic()

    def poll(self) -> None:
        """Let it happen if its instant has come, and last as long as the start does."""
        if self.happened_after is not None:
            if self._fault.kind == "disk":
                self._fill_disk()
            return
        if self._began is None:
            if not self._phase_began():
                return
            self._began = time.monotonic()
        if time.monotonic() - self._began >= self._fault.seconds and self._inject():
            self.happened_after = time.monotonic() - self._started

    def end(self) -> None:
        """Mend what can be mended: the ledger answers again, a new start has disk."""
        if self._held is not None:
            self._held.rollback()
            self._held.close()
        if self._fault.kind == "database" and self.happened_after is not None:
            self._place.postgres.start()

    def _phase_began(self) -> bool:
        site = self._place
        if self._fault.phase == "start":
            return True
        if self._fault.phase == "ray":
            return bool(site.of_kind("raylet"))
        if self._fault.phase == "steps":
            return bool(site.executed)
        return any(
            json.loads(path.read_bytes())["stage"] == "synthesize"
            for path in site.home.path.glob("runs/*/state.json")
        )

    def _inject(self) -> bool:
        kind = self._fault.kind
        if kind == "disk":
            return self._fill_disk()
        if kind == "ledger":
            return self._hold_ledger()
        if kind == "database":
            self._place.postgres.crash()
            return True
        victims = [self._start.process.pid] if kind == "driver" else self._place.of_kind(kind)
        if not victims:
            return False
        with suppress(ProcessLookupError):
            os.kill(victims[-1], signal.SIGKILL)
            return True
        return False

    def _fill_disk(self) -> bool:
        """Let no file grow any more that a Python process of the run writes to.

        Python gets an error, as of a full disk; Ray's own servers would be killed by it, so they
        are spared. Every process that is started later is found at the next poll.
        """
        for pid, command in self._place.processes().items():
            if b"gcs_server" in command or b"raylet/raylet" in command:
                continue
            with suppress(ProcessLookupError, PermissionError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        return True

    def _hold_ledger(self) -> bool:
        """Lock the ledger for writing, longer than anybody waits for it."""
        path = self._place.home.path / "ledger.db"
        held = sqlite3.connect(path, timeout=0.2, isolation_level=None)
        try:
            held.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            held.close()
            return False
        self._held = held
        return True
