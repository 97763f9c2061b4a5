"""Starting lives in another process, following their journals, and the instants they die at."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from privacy.ledger import Head
from tests.synth import run_to_kill
from tests.synth.run_to_kill import Life, request


class Nursery:
    """The process that forks lives; see `run_to_kill`."""

    def __init__(self, errors):
        self._errors = errors
        self._process = subprocess.Popen(
            [sys.executable, "-m", run_to_kill.__name__],
            cwd=Path(run_to_kill.__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.open("ab"),
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def ask(self, asked):
        self._process.stdin.write(request(asked))
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self.errors()
        return json.loads(answer)

    def wait(self, pid):
        while (code := self.ask(pid)) is None:
            time.sleep(0.0005)
        return code

    def errors(self):
        return self._errors.read_text()[-3000:]

    def close(self):
        self._process.stdin.close()
        self._process.wait()


@dataclass
class Start:
    """One start of a run as its journal tells it."""

    life: Life
    pid: int
    begun: float
    instant: "Instant"
    phases: list[tuple[float, str]] = field(default_factory=list)
    attempt: int | None = None
    heads: list[Head] = field(default_factory=list)
    asked: Counter = field(default_factory=Counter)
    charged: Counter = field(default_factory=Counter)
    masks: list[tuple[str, str, str]] = field(default_factory=list)
    noise: Counter = field(default_factory=Counter)
    drawn: list[str] = field(default_factory=list)
    _read: int = 0

    @classmethod
    def of(cls, life: Life, nursery: Nursery, instant: "Instant") -> "Start":
        """Start a life that is to be killed at an instant."""
        return cls(life, nursery.ask(life), time.monotonic(), instant)

    def lasted(self, phase: str | None = None) -> float:
        """Seconds that a phase took when it came first, or the whole life."""
        if phase is None:
            return self.phases[-1][0] - self.begun
        ends = zip(self.phases, self.phases[1:], strict=False)
        return next(end - begun for (begun, name), (end, _) in ends if name == phase)

    def read(self) -> "Start":
        """Take in the lines that came since; a line that is being written is for the next time."""
        path = Path(self.life.journal)
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            for line in whole.decode().splitlines():
                self._take(*line.split(" ", 2))
        return self

    def _take(self, what, first, *rest):
        if what == "phase":
            self.phases.append((float(first), rest[0]))
        elif what == "begun":
            self.attempt = int(first)
        elif what == "head":
            self.heads.append(Head.parse(first))
        elif what in ("asks", "charged"):
            (self.asked if what == "asks" else self.charged)[first] += int(rest[0])
        elif what == "mask":
            self.masks.append((first, *rest[0].split()))
        elif what == "noise":
            self.noise[int(first)] += 1
        else:
            self.drawn.append(first)

    def is_due(self) -> bool:
        """Whether its instant has come."""
        return self.instant.is_due(self.begun, self.phases)


@dataclass(frozen=True)
class Instant:
    """When to kill: so long after the beginning, or after a phase began for the n-th time."""

    seconds: float
    phase: str | None = None
    n: int = 1

    def is_due(self, begun, phases):
        if self.phase is not None:
            times = [when for when, name in phases if name == self.phase]
            if len(times) < self.n:
                return False
            begun = times[self.n - 1]
        return time.monotonic() >= begun + self.seconds


NEVER = Instant(1e9)
