"""RunState: what `umbra status` knows of a run, and `umbra resume` goes on from."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.process import ProcessIdentity
from pipeline.ray_job import RayJob

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

        Of one elsewhere `pipeline.standing` says what can be known.
        """
        return self.status == "running" and self.process is not None and self.process.alive()
