"""Small whole runs by the command line, in a home of their own, and their processes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.home import Home
from tests.postgres import PostgresServer

STEPS = 60  # T of every run
SHARDS, SHARD_ROWS = 20, 10
SPEC = """\
name: small
data:
  name: digits
  source: {{kind: digits, split: train}}
  records: 1438
  size: 8
  channels: 1
  classes: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
  public: true
privacy: {{epsilon: 5, delta: 1e-4}}
model: {{base: 4, multipliers: [1], attention: [], blocks: 1}}
train: {{batch: 48, steps: 60, views: 1, charge_block: 2, checkpoint_every: 4}}
synthesize: {{images: 200, steps: 20, shard_rows: 10}}
resources: {{workers: {workers}}}
"""
_KINDS = {
    "gcs": re.compile(rb"gcs_server"),
    "raylet": re.compile(rb"raylet/raylet"),
    "worker": re.compile(rb"ray::TrainingWorker"),
    "sampler": re.compile(rb"ray::ShardSampler"),
}


@dataclass
class Start:
    """One start of a command, and what became of it.

    Attributes:
        code: exit code; None while it runs.
        stderr: standard error, to its end if it has ended.
    """

    process: subprocess.Popen[bytes]
    errors: Path
    code: int | None = None

    def __post_init__(self) -> None:
        # Through a pipe, or a full disk would take away the words about it.
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def stderr(self) -> str:
        self._listener.join(timeout=5)
        return self.errors.read_text(errors="replace")

    def _listen(self) -> None:
        with self.errors.open("wb", buffering=0) as copy:
            shutil.copyfileobj(self.process.stderr, copy, 1)

    def poll(self) -> int | None:
        self.code = self.process.poll()
        return self.code


@dataclass
class Site:
    """A home that small runs are made in, one at a time.

    Attributes:
        folder: holds the home, specs and the output of commands.
        postgres: the server that keeps the ledger; None keeps it in a file of the home.
        executed: private steps that were begun, by attempt, of the run that is on.
    """

    folder: Path
    postgres: PostgresServer | None = None
    executed: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        places = {"UMBRA_HOME": str(self.folder / "home")}
        if self.postgres is not None:
            places["UMBRA_LEDGER_URL"] = self.postgres.url
        self.home = Home.locate(places)
        self._pipe = self.folder / "journal"
        os.mkfifo(self._pipe)
        # For reading and writing: so that it has a reader as long as this process lives.
        self._journal = os.open(self._pipe, os.O_RDWR | os.O_NONBLOCK)
        self._begun = 0
        path = [str(Path(__file__).with_name("journal")), os.environ.get("PYTHONPATH")]
        dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "UMBRA_LEDGER_URL")
        self._environ = {name: text for name, text in os.environ.items() if name not in dropped} | {
            **places,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "UMBRA_TEST_JOURNAL": str(self._pipe),
        }

    def start(self, *arguments: str) -> Start:
        """Start a command of `umbra`."""
        self._begun += 1
        errors = self.folder / f"stderr-{self._begun:03d}.txt"
        with (self.folder / "stdout.txt").open("wb") as stdout:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli.main", *arguments],
                env=self._environ,
                stdout=stdout,
                stderr=subprocess.PIPE,
                cwd=Path.cwd(),
            )
        return Start(process, errors)

    def stdout(self) -> str:
        """What the last command wrote to standard output."""
        return (self.folder / "stdout.txt").read_text()

    def wait(self, start: Start, seconds: float) -> int | None:
        """Wait for a command's end; None, and it is killed, if that does not come."""
        end = time.monotonic() + seconds
        while start.poll() is None:
            self.read_journal()
            if time.monotonic() > end:
                start.process.kill()
                start.process.wait()
                start.code = None
                return None
            time.sleep(0.05)
        self.read_journal()
        return start.code

    def read_journal(self) -> None:
        """Take in the steps that were begun since."""
        try:
            while lines := os.read(self._journal, 1 << 16):
                self.executed.update(int(line.split()[0]) for line in lines.splitlines())
        except BlockingIOError:
            return

    def processes(self) -> dict[int, bytes]:
        """Every process that was started in this home and lives: its id and command line."""
        mark = f"UMBRA_HOME={self.home.path}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if mark not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if command:  # a zombie has none
                found[int(entry.name)] = command
        return found

    def of_kind(self, kind: str) -> list[int]:
        """Ids of the processes of a kind."""
        shown = _KINDS[kind]
        return sorted(pid for pid, command in self.processes().items() if shown.search(command))

    def kill_all(self) -> None:
        """End whatever still runs in this home."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def close(self) -> None:
        """Leave nothing running."""
        self.kill_all()
        os.close(self._journal)


def declared(folder: Path, postgres: PostgresServer | None = None) -> Site:
    """Make a site whose data set has a budget."""
    folder.mkdir()
    site = Site(folder, postgres)
    start = site.start(
        "budget", "declare", "digits", "--epsilon", "1000", "--delta", "1e-4", "--public"
    )
    assert site.wait(start, 120) == 0, start.stderr
    return site
