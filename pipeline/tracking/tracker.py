"""Runs in MLflow: one parent for an Umbra run, one child for a stage, resumable by id."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from time import monotonic, time_ns

from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunStatus
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from pipeline.spec import Spec
from pipeline.tracking.connection import (
    EXPERIMENT,
    TrackingUnavailable,
    connect,
    open_experiment,
    readable_errors,
)
from pipeline.tracking.release import Release
from privacy.errors import InvalidRequest
from synth.storage import StoragePath, is_within, local_copy

RUN_TAG = "umbra.run_id"
SPEC_TAG = "umbra.spec_sha256"
LEDGER_TAG = "umbra.ledger_id"
HEAD_TAG = "umbra.ledger_head"
VOID_TAG = "umbra.void"
ENGINE_TAG = "umbra.gradient_engine"


@dataclass(frozen=True)
class RunIdentity:
    """What ties an MLflow run to the proof of it.

    Attributes:
        run_id: the Umbra run.
        spec_sha256: digest of the spec as submitted.
        ledger_id: which ledger was charged.
        ledger_head: hash of the ledger's newest row.
        void: a seed was given, so nothing is promised.
        gradient_engine: how clipped gradients are computed; it has no influence on them.
    """

    run_id: str
    spec_sha256: str
    ledger_id: str
    ledger_head: str
    void: bool
    gradient_engine: str

    def tags(self) -> dict[str, str]:
        """The identity as MLflow tags."""
        return {
            RUN_TAG: self.run_id,
            SPEC_TAG: self.spec_sha256,
            LEDGER_TAG: self.ledger_id,
            HEAD_TAG: self.ledger_head,
            VOID_TAG: str(self.void).lower(),
            ENGINE_TAG: self.gradient_engine,
        }


STAGE_TAG = "umbra.stage"

# MLflow's own limits on one request.
_PARAMS_A_CALL = 100
_PARAM_CHARACTERS = 6000


class Ended(IntEnum):
    """How a run or a stage ended, in MLflow's terms."""

    FINISHED = RunStatus.FINISHED
    FAILED = RunStatus.FAILED
    KILLED = RunStatus.KILLED

    @classmethod
    def by(cls, error: BaseException) -> "Ended":
        """Return KILLED for what stops from outside (Ctrl-C, `umbra cancel`), else FAILED."""
        return cls.FAILED if isinstance(error, Exception) else cls.KILLED


class Tracker:
    """One MLflow experiment that Umbra's runs are kept in.

    Args:
        uri: tracking server or database, such as `sqlite:///…/mlflow.db`.
        artifact_root: folder or URI for artifacts of a NEW experiment; None leaves it to MLflow.
        experiment: its name.

    Raises:
        TrackingUnavailable: MLflow cannot be reached.
    """

    def __init__(
        self, uri: str, artifact_root: Path | str | None, experiment: str = EXPERIMENT
    ) -> None:
        self.uri = uri
        self.client = connect(uri)
        root = (
            artifact_root.absolute().as_uri() if isinstance(artifact_root, Path) else artifact_root
        )
        self.experiment_id: str = open_experiment(self.client, uri, experiment, root).experiment_id

    def start(self, name: str, identity: RunIdentity, release: StoragePath) -> "TrackedRun":
        """A new parent run.

        Args:
            name: the spec's name.
            identity: becomes the run's tags.
            release: the run's `release/` folder: the only place artifacts are taken from.
        """
        with readable_errors(self.uri):
            run = self.client.create_run(self.experiment_id, run_name=name, tags=identity.tags())
        return TrackedRun(self, run.info.run_id, release)

    def reopen(self, mlflow_run_id: str, release: StoragePath) -> "TrackedRun":
        """The parent run of that MLflow id, set running again.

        Stages of it that are said to run were those of a process that died: they become failed.

        Raises:
            TrackingUnavailable: MLflow has no such run.
        """
        with readable_errors(self.uri):
            self.client.get_run(mlflow_run_id)
            for stage in self._running_stages(mlflow_run_id):
                self.client.set_terminated(stage, RunStatus.to_string(Ended.FAILED))
            self.client.update_run(mlflow_run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        return TrackedRun(self, mlflow_run_id, release)

    def _running_stages(self, mlflow_run_id: str) -> list[str]:
        query = (
            f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{mlflow_run_id}' "
            f"and attributes.status = '{RunStatus.to_string(RunStatus.RUNNING)}'"
        )
        found = self.client.search_runs([self.experiment_id], query)
        return [run.info.run_id for run in found]

    def find(self, run_id: str) -> str | None:
        """The MLflow id of an Umbra run's parent, or None: a crash may have left it unnoted."""
        if not run_id.replace("-", "").replace("_", "").isalnum():
            raise InvalidRequest("a run id holds letters, digits, '-' and '_' only")
        with readable_errors(self.uri):
            found = self.client.search_runs(
                [self.experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1
            )
        return found[0].info.run_id if found else None


class _Public:
    """What parent and child share: metrics and artifacts, public ones only.

    Attributes:
        id: the MLflow run.
        experiment_id: the MLflow experiment it belongs to.
        client, uri: the connection it is written through.
    """

    def __init__(self, tracker: Tracker, mlflow_id: str, release: StoragePath) -> None:
        self.client = tracker.client
        self.uri = tracker.uri
        self.experiment_id = tracker.experiment_id
        self.id = mlflow_id
        self._tracker = tracker
        self._release = release

    def metrics(self, release: Release, step: int = 0) -> None:
        """Writes released numbers.

        Raises:
            InvalidRequest: `release` is not a `Release`: a plain dictionary was checked by nobody.
        """
        if not isinstance(release, Release):
            raise InvalidRequest(
                f"the tracker takes a Release, found {type(release).__name__}: make one with "
                "Release.plan, .spent, .evaluation, .seconds or .rows"
            )
        now = time_ns() // 1_000_000
        batch = [Metric(name, value, now, step) for name, value in release.values.items()]
        with readable_errors(self.uri):
            self.client.log_batch(self.id, metrics=batch)

    def artifact(self, path: StoragePath, folder: str | None = None) -> None:
        """Copies a file or folder of the run's `release/` folder to MLflow.

        Raises:
            InvalidRequest: the path (links followed) lies outside `release/`, or is missing.
        """
        self.require_released(path)
        send = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        with local_copy(path) as copy, readable_errors(self.uri):
            send(self.id, str(copy), folder)

    def require_released(self, path: StoragePath) -> None:
        """Raises InvalidRequest unless `path`, links followed, lies in the run's `release/`."""
        if not path.exists():
            raise InvalidRequest(f"there is no {path.name!r} in the run's release/ folder")
        if not is_within(path, self._release):
            raise InvalidRequest(
                f"{path.name!r} lies outside the run's release/ folder, or a link in it leads "
                "there: only what was released may become an artifact"
            )

    def _end(self, ended: Ended) -> None:
        with readable_errors(self.uri):
            self.client.set_terminated(self.id, RunStatus.to_string(ended))


class StageRun(_Public):
    """The child run of one stage; open it with `TrackedRun.stage`."""


class TrackedRun(_Public):
    """The parent run; made by `Tracker.start` or `Tracker.reopen`."""

    def params(self, spec: Spec) -> None:
        """Writes the spec, flattened to `section.field`; a spec is public by definition.

        Writing the same spec again changes nothing, so a resumed run may.
        """
        if not isinstance(spec, Spec):
            raise InvalidRequest(
                f"parameters come from a spec and nowhere else, found {type(spec).__name__}"
            )
        flat = flatten(spec.model_dump(mode="json"))
        params = [Param(name, value[:_PARAM_CHARACTERS]) for name, value in flat.items()]
        with readable_errors(self.uri):
            for start in range(0, len(params), _PARAMS_A_CALL):
                self.client.log_batch(self.id, params=params[start : start + _PARAMS_A_CALL])

    def log_dataset(self, name: str) -> None:
        """Notes which declared data set was used, by name alone.

        MLflow wants a digest and would compute one from the content: a plain hash of private data
        is a leak, so the digest here is of the NAME.
        """
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        dataset = Dataset(name=name, digest=digest, source_type="declared", source="{}")
        with readable_errors(self.uri):
            self.client.log_inputs(self.id, [DatasetInput(dataset)])

    def ledger_head(self, head: str) -> None:
        """Moves the ledger's head hash on, so that a truncated ledger shows."""
        with readable_errors(self.uri):
            self.client.set_tag(self.id, HEAD_TAG, head)

    @contextmanager
    def stage(self, name: str) -> Iterator[StageRun]:
        """A child run around one stage: finished, failed or killed as its block was.

        The exception itself is not written: its text may hold data.
        """
        tags = {MLFLOW_PARENT_RUN_ID: self.id, MLFLOW_RUN_NAME: name, STAGE_TAG: name}
        with readable_errors(self.uri):
            child = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
        stage = StageRun(self._tracker, child.info.run_id, self._release)
        begun = monotonic()
        try:
            yield stage
        except BaseException as error:
            # The stage's own error is the one to be seen, not that MLflow could not be told of it.
            with suppress(TrackingUnavailable):
                stage._end(Ended.by(error))
            raise
        stage.metrics(Release.seconds(name, monotonic() - begun))
        stage._end(Ended.FINISHED)

    def finish(self, ended: Ended = Ended.FINISHED) -> None:
        """Ends the parent run.

        Unless it succeeded a lost MLflow is passed over: why it did not is what must be seen.
        """
        if ended is Ended.FINISHED:
            self._end(ended)
            return
        with suppress(TrackingUnavailable):
            self._end(ended)


def flatten(nested: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one level of dotted names; lists and scalars as their text."""
    flat: dict[str, str] = {}
    for name, value in nested.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{full}.")
        elif value is not None:
            flat[full] = str(value)
    return flat
