"""RunState, which state.json holds: what `umbra status` shows and `umbra resume` continues from."""

import os
import socket
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessIdentity:
    """A process id and its start: together they are never reused on `host`.

    Runs of older versions did not record `host`: it is empty, and the process was one here.
    """

    pid: int
    started: str
    host: str = ""

    @classmethod
    def current(cls) -> "ProcessIdentity":
        """Return the identity of this process."""
        return cls(os.getpid(), _started(os.getpid()) or "", socket.gethostname())

    def is_local(self) -> bool:
        """Whether it is a process of this machine; on others it cannot be looked up."""
        return self.host in {"", socket.gethostname()}

    def is_alive(self) -> bool:
        """Whether this very process, not a later one with its id, still runs here."""
        return self.is_local() and bool(self.started) and _started(self.pid) == self.started


def _started(pid: int) -> str | None:
    """Return a text that marks when `pid` started; None if it is gone or a zombie."""
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
    """A job of a Ray cluster's Jobs API."""

    address: str  # of the Jobs API, `http://host:8265`; holds no password
    submission_id: str

    @classmethod
    def of(cls, run_id: str, start: int, address: str) -> "RayJob":
        """Return the job for the `start`-th submission of a run; its name is unique."""
        return cls(address, f"umbra-{run_id}-{start}")

    def __str__(self) -> str:
        return f"Ray job {self.submission_id} at {self.address}"


Status = Literal["created", "running", "failed", "cancelled", "done"]


class StageRecord(BaseModel):
    """A stage that is done, and the seconds it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RunState(BaseModel):
    """The state of one run; it is public, so no private value may enter it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    run_id: str
    spec_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    status: Status = "created"  # as last recorded; `pipeline.runs.status` finds what is true now
    stage: str | None = None  # runs, or failed
    stages: tuple[StageRecord, ...] = ()  # are done
    # How often the run was started: each attempt draws its own masks and noise.
    attempt: Annotated[int, Field(ge=0)] = 0
    reservation_id: str | None = None  # pays for the training
    # Pays for figures against a private holdout, where they are released.
    holdout_reservation_id: str | None = None
    mlflow_experiment_id: str | None = None
    mlflow_run_id: str | None = None
    process: ProcessIdentity | None = None  # works on the run
    job: RayJob | None = None  # that the run was submitted as, started or not
    jobs: Annotated[int, Field(ge=0)] = 0  # how many there were
    waiting: str = ""  # the resources that the run waits for; empty while it has them
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    updated: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    message: str = ""  # why the run failed, or another note for a person

    @model_validator(mode="before")
    @classmethod
    def _drop_former_fields(cls, data: Any) -> Any:
        if isinstance(data, dict):
            # Written by older versions, read by none.
            return {name: value for name, value in data.items() if name != "mlflow_stage_run_ids"}
        return data

    def is_done(self, stage: str) -> bool:
        """Whether `stage` is complete, so that a resumed run skips it."""
        return any(record.name == stage for record in self.stages)

    def is_live(self) -> bool:
        """Whether a process of this machine works on the run; see `run_status` for others."""
        return self.status == "running" and self.process is not None and self.process.is_alive()
