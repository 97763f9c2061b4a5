"""RunState: what `umbra status` knows of a run, and `umbra resume` goes on from."""

import os
import socket
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

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


JOB_VARIABLE = "UMBRA_JOB"  # in a job's environment: its own submission id


@dataclass(frozen=True)
class RayJob:
    """A job of a Ray cluster's Jobs API.

    Attributes:
        address: of the Jobs API, `http://host:8265`; holds no password.
        submission_id: the job's name there.
    """

    address: str
    submission_id: str

    @classmethod
    def of(cls, run_id: str, start: int, address: str) -> "RayJob":
        """Return the job for the `start`-th handing over of a run: two have never the same name."""
        return cls(address, f"umbra-{run_id}-{start}")

    def __str__(self) -> str:
        return f"Ray job {self.submission_id} at {self.address}"


Status = Literal["created", "running", "failed", "cancelled", "done"]


class StageRecord(BaseModel):
    """A stage that is done, and how long it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RunState(BaseModel):
    """The state of one run. Everything here may be shown: no private value enters it.

    `stage` is the stage that runs or that failed; `stages` are those that are done.
    `attempt` counts how often the run was begun; masks and noise are drawn afresh for each.
    `holdout_reservation_id` is what pays for measures against a private holdout, where they are
    released. `process` works on the run; `job` is the Ray job that it was handed to, if any, which
    may have to begin yet; `jobs` counts them all. `waiting` says what room the run waits for, empty
    while it has it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    run_id: str
    spec_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    status: Status = "created"
    stage: str | None = None
    stages: tuple[StageRecord, ...] = ()
    attempt: Annotated[int, Field(ge=0)] = 0
    reservation_id: str | None = None
    holdout_reservation_id: str | None = None
    mlflow_experiment_id: str | None = None
    mlflow_run_id: str | None = None
    mlflow_stage_run_ids: dict[str, str] = Field(default_factory=dict)
    process: ProcessIdentity | None = None
    job: RayJob | None = None
    jobs: Annotated[int, Field(ge=0)] = 0
    waiting: str = ""
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    updated: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    message: str = ""

    def is_done(self, stage: str) -> bool:
        """Whether `stage` has been completed, so that a resumed run passes over it."""
        return any(record.name == stage for record in self.stages)

    def is_live(self) -> bool:
        """Whether the process that said it was running still runs on this machine.

        Of one elsewhere `pipeline.runs.status` says what can be known.
        """
        return self.status == "running" and self.process is not None and self.process.alive()
