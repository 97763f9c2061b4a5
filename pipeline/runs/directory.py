"""A run's folder: its spec, its state (from which `umbra resume` goes on), what may be shared.

runs/<run id>/
    spec.yaml    the spec, paths absolute, defaults written out
    evaluation.yaml  the same as its evaluation was corrected later, if it was
    state.json   RunState
    log.txt      stages and counts in the order they happened, for `umbra logs`
    release/     may be shared
    internal/    never leaves (mode 0700); the checkpoints lie below it
    storage      the address of release/ and checkpoints/, only where the spec names one
"""

import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.progress import coarse
from privacy.errors import IntegrityBroken, InvalidRequest, UmbraError
from synth.storage import StoragePath, parse_address, require_writable, write_bytes

if TYPE_CHECKING:
    from pipeline.spec import Spec

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


GIVEN_UP_WORDS = "given up"


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
    status: Status = "created"  # as last recorded; `pipeline.runs.control` finds what is true now
    stage: str | None = None  # runs, or failed
    stages: tuple[StageRecord, ...] = ()  # are done
    # How often the run was started: each attempt draws its own masks and noise.
    attempt: Annotated[int, Field(ge=0)] = 0
    # Whether everything that the run makes carries what paid for it; older versions sealed nothing.
    sealed: bool = False
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
    # Of the steps that were charged, those that the weights have taken; None before they are there.
    trained_steps: Annotated[int, Field(ge=0)] | None = None
    given_up: bool = False  # its reservation is settled: it cannot be resumed
    message: str = ""  # why the run failed, or another note for a person

    @model_validator(mode="before")
    @classmethod
    def _drop_former_fields(cls, data: Any) -> Any:
        if isinstance(data, dict):
            # Written by older versions, read by none.
            return {name: value for name, value in data.items() if name != "mlflow_stage_run_ids"}
        return data

    @property
    def is_given_up(self) -> bool:
        """Whether the run was given up; older versions said so in the message alone."""
        return self.given_up or self.message.startswith(GIVEN_UP_WORDS)

    def is_done(self, stage: str) -> bool:
        """Whether `stage` is complete, so that a resumed run skips it."""
        return any(record.name == stage for record in self.stages)

    def is_live(self) -> bool:
        """Whether a process of this machine works on the run; see `run_status` for others."""
        return self.status == "running" and self.process is not None and self.process.is_alive()


class FileIn:
    """A file or a folder below the `path` of the object that this is an attribute of."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, kind: type | None = None) -> Path:
        path: Path = owner.path / self.name
        return path


_RELEASE, _CHECKPOINTS, _STORAGE = "release", "checkpoints", "storage"
_RESTORE = "Nothing was changed. Restore it from a backup or submit the spec as a new run."


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk. Writes are atomic: a reader sees the old or the new, never a part."""

    path: Path

    spec_path = FileIn("spec.yaml")
    evaluation_path = FileIn("evaluation.yaml")
    state_path = FileIn("state.json")
    log_path = FileIn("log.txt")
    internal = FileIn("internal")

    @classmethod
    def create(cls, path: Path, spec: "Spec") -> "RunDirectory":
        """Create the folder of a new run.

        Raises:
            FileExistsError: a run is there already.
            UmbraError: the folder or the spec's storage cannot be written.
            InvalidRequest: the spec's storage is no address of a known kind, or holds a password.
        """
        run = cls(path)
        address = spec.resources.storage
        if address is not None:
            require_writable(parse_address(address))
        with _readable_errors(path):
            path.mkdir(parents=True)
            try:
                run.internal.mkdir(mode=0o700)
                if address is None:
                    (path / _RELEASE).mkdir()
                else:
                    write_bytes(path / _STORAGE, address.encode())
                write_bytes(run.spec_path, spec.to_yaml().encode())
                run._write(RunState(run_id=run.run_id, spec_sha256=spec.sha256(), sealed=True))
            except BaseException:
                # An incomplete run would be listed, but could be neither resumed nor exported.
                shutil.rmtree(path, ignore_errors=True)
                raise
        return run

    @property
    def run_id(self) -> str:
        """The name of the folder."""
        return self.path.name

    @property
    def release(self) -> StoragePath:
        """The folder of what may be shared."""
        return (self.storage or self.path) / _RELEASE

    @property
    def checkpoints(self) -> StoragePath:
        """The training's checkpoints, which are internal wherever they are stored."""
        return (self.storage or self.internal) / _CHECKPOINTS

    @cached_property
    def storage(self) -> StoragePath | None:
        """The run's own part of the storage that its spec names; None if all is in this folder.

        Raises:
            InvalidRequest: the file with the address is damaged.
        """
        # Not read from the spec: whoever moves a finished run's objects to another bucket can
        # change this file, but not the spec, whose hash is in the ledger.
        try:
            address = (self.path / _STORAGE).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        return parse_address(address) / self.run_id

    def spec(self) -> "Spec":
        """Return the run's spec.

        Raises:
            IntegrityBroken: the file is missing, damaged or not the spec that was submitted.
        """
        from pipeline.spec import SpecError, load_spec

        try:
            spec = load_spec(self.spec_path, kept=True)
        except SpecError as error:
            raise IntegrityBroken(
                f"the spec of run {self.run_id} cannot be read: {error}. {_RESTORE}"
            ) from error
        recorded = self.state().spec_sha256
        if spec.sha256() != recorded:
            raise IntegrityBroken(
                f"{self.spec_path} was changed after the run was submitted: expected "
                f"sha256 {recorded}, found {spec.sha256()}. {_RESTORE}"
            )
        return spec

    def evaluated_spec(self) -> "Spec":
        """Return the spec with its evaluation as it was corrected, if it was; raises as `spec`."""
        from pipeline.spec import SpecError, load_spec

        spec = self.spec()
        try:
            # Only what may be corrected is taken from that file, whoever wrote it.
            found = self.evaluation_path.exists()
            return spec.corrected(load_spec(self.evaluation_path, kept=True)) if found else spec
        except SpecError as error:
            raise IntegrityBroken(f"{error}. Remove the file, or correct it again") from error

    def state(self) -> RunState:
        """Return the run's state as last written.

        Raises:
            IntegrityBroken: state.json is missing or damaged.
        """
        try:
            state = RunState.model_validate_json(self.state_path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the whole file"
            wrong = f"is damaged ({where}: {first['msg']})"
        except OSError as error:
            wrong = f"cannot be read ({error.strerror})"
        else:
            if state.run_id == self.run_id:
                return state
            wrong = f"is damaged: expected run {self.run_id}, found {state.run_id!r}"
        # Outside the handlers: pydantic's text holds the file's content, and is not chained.
        raise IntegrityBroken(f"{self.state_path} {wrong}. {_RESTORE}")

    def update(self, **changes: Any) -> RunState:
        """Write the state with `changes` and return it; raises ValueError for an invalid one."""
        return self._rewrite(lambda old: changes)

    def finish_stage(self, stage: str, seconds: float) -> RunState:
        """Record that `stage` is done after about `seconds`; a repeated stage is recorded once."""
        done = StageRecord(name=stage, seconds=coarse(seconds))

        def change(old: RunState) -> dict[str, Any]:
            others = tuple(record for record in old.stages if record.name != stage)
            return {"stages": (*others, done), "stage": None}

        return self._rewrite(change)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for this process; the system unlocks it if the process dies.

        Raises:
            InvalidRequest: another process holds it.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(self._exclusive("run.lock", block=False))
            except BlockingIOError as error:
                process = self.state().process
                holder = f"process {process.pid}" if process else "another process"
                raise InvalidRequest(
                    f"run {self.run_id} is being worked on by {holder}. Wait for it, or stop "
                    f"it with `umbra cancel {self.run_id}`."
                ) from error
            yield

    @contextmanager
    def submission_lock(self) -> Iterator[None]:
        """Let one process at a time submit the run to a cluster; others wait."""
        # Not `lock`, which the job takes while this process still records that it started.
        with self._exclusive("handing-over.lock", block=True):
            yield

    def begin(self) -> RunState:
        """Mark the run as running in this process, as a new attempt; call under `lock`."""
        if self.storage is not None:
            # A store that is out of reach must not be taken for one without checkpoints.
            require_writable(self.storage.parent)
        now = {"status": "running", "process": ProcessIdentity.current(), "message": ""}
        return self._rewrite(lambda old: {**now, "attempt": old.attempt + 1})

    def _rewrite(self, change: Callable[[RunState], dict[str, Any]]) -> RunState:
        # Read, change and write under one lock: a run goes on while another process cancels it,
        # and neither's change may be lost.
        with _readable_errors(self.path), self._exclusive("state.lock", block=True):
            old = self.state()
            fields = {**old.model_dump(), "updated": datetime.now(UTC), **change(old)}
            new = RunState.model_validate(fields)
            self._write(new)
        return new

    def _write(self, state: RunState) -> None:
        write_bytes(self.state_path, state.model_dump_json(indent=2).encode() + b"\n")

    @contextmanager
    def _exclusive(self, name: str, *, block: bool) -> Iterator[None]:
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
            yield
        finally:
            os.close(descriptor)


@contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    """Raise a full disk or a missing right as an UmbraError that names the folder."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise UmbraError(f"cannot write the run folder {path}: {error.strerror}") from error
