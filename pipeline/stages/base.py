"""The contract of a stage, and the context that it works in."""

from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.home import Home
from pipeline.plan.plan import Plan
from pipeline.progress import Progress
from pipeline.runs.directory import RunDirectory
from pipeline.spec import Spec
from pipeline.tracking.tracker import StageRun, TrackedRun
from privacy.budget import Budget

TRACES = "traces"  # below internal/: workers' tracebacks, which may hold private values


@dataclass(frozen=True)
class Context:
    """A run that is being executed."""

    home: Home
    run: RunDirectory
    spec: Spec  # with the workers of this start
    plan: Plan
    budget: Budget  # for reading
    manager: Any  # the cluster's budget manager, for charging and settling
    tracked: TrackedRun
    progress: Progress

    @property
    def reservation_id(self) -> str:
        """The run's reservation, which ingest made."""
        reservation_id = self.run.state().reservation_id
        assert reservation_id is not None  # noqa: S101
        return reservation_id


class Stage(Protocol):
    """One part of a run. It may start again after a crash, which must do no harm."""

    name: str

    def run(self, context: Context, tracked: StageRun) -> None:
        """Do the stage's work.

        Args:
            context: the run.
            tracked: the stage's own run in MLflow; public and released values only.

        Raises:
            UmbraError: it failed; the message is for the user.
        """
