"""Runs in MLflow: one parent for an Umbra run, one child for a stage, resumable by id."""

import hashlib
import http.client
import importlib.metadata
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from time import monotonic, time_ns
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient, entities
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from pipeline.home import without_password
from pipeline.spec import Spec
from pipeline.tracking.release import Release, is_measured
from privacy.errors import InvalidRequest, UmbraError
from synth.export.documents import may_leave
from synth.origin import weights_mark
from synth.storage import StoragePath, is_within, local_copy

EXPERIMENT, MODEL = "umbra", "sampler"

# MLflow's own limits on one request.
_PARAMS_PER_CALL = 100
_PARAM_CHARACTERS = 6000
_ANSWER_SECONDS = 10.0
_REASON = 600  # characters of an error's text


class TrackingUnavailable(UmbraError):
    """MLflow cannot be reached or refused a request; no budget is touched by that."""


@dataclass(frozen=True)
class RunIdentity:
    """Ties an MLflow run to the ledger; every field becomes a tag `umbra.<field>`."""

    run_id: str
    spec_sha256: str
    ledger_id: str
    ledger_head: str
    void: bool  # a seed was given, so no privacy is guaranteed
    gradient_engine: str  # how clipped gradients are computed, which does not change them

    def tags(self) -> dict[str, str]:
        """Return the identity as MLflow tags."""
        tags = {f"umbra.{name}": str(value) for name, value in asdict(self).items()}
        return tags | {"umbra.void": str(self.void).lower()}


class Ended(IntEnum):
    """How a run or a stage ended, in MLflow's terms."""

    FINISHED = entities.RunStatus.FINISHED
    FAILED = entities.RunStatus.FAILED
    KILLED = entities.RunStatus.KILLED

    @classmethod
    def by(cls, error: BaseException) -> "Ended":
        """Return KILLED for an interrupt (Ctrl-C, `umbra cancel`), else FAILED."""
        return cls.FAILED if isinstance(error, Exception) else cls.KILLED


@contextmanager
def readable_errors(uri: str) -> Iterator[None]:
    """Raise MLflow's errors as `TrackingUnavailable`, with their reason but without a password."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, http.client.HTTPException) as error:
        kind = getattr(error, "error_code", type(error).__name__)
        reason = " ".join(without_password(str(error)).split())
        # MLflow's most useful sentences are long; what follows them is an excerpt of a trace.
        reason = f"{reason[:_REASON]}…" if len(reason) > _REASON else reason.rstrip(".")
        raise TrackingUnavailable(
            f"MLflow at {without_password(uri)} refused or did not answer ({kind}: {reason}): "
            "check MLFLOW_TRACKING_URI and that the place can be written"
        ) from None


def require_reachable(uri: str) -> None:
    """Raise TrackingUnavailable unless the server answers, or the database opens; creates nothing.

    By other means than MLflow's own client, which asks a dead server for minutes.
    """
    parts = urlsplit(uri)
    with readable_errors(uri):
        if parts.scheme in {"http", "https"} and parts.hostname:
            secure = parts.scheme == "https"
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            with closing(kind(parts.hostname, parts.port, timeout=_ANSWER_SECONDS)) as server:
                # Whatever it answers, there is one; what it admits is for the run to find out.
                server.request("GET", f"{parts.path.rstrip('/')}/health")
                server.getresponse()
        elif _is_database(uri):
            # Not "SELECT 1", for which SQLite opens no file.
            query = "PRAGMA schema_version" if uri.startswith("sqlite") else "SELECT 1"
            with create_engine(uri).connect() as connection:
                connection.execute(text(query))


def _is_database(uri: str) -> bool:
    try:
        url = make_url(uri)
    except SQLAlchemyError:
        return False
    # A file that is not there yet would be created.
    return url.get_backend_name() != "sqlite" or Path(url.database or "").is_file()


def connect(uri: str) -> MlflowClient:
    """Return a client of the server or database at `uri` that prints nothing to the terminal."""
    # Creating a database logs every migration, and a refused statement is logged with a traceback
    # before it is raised; `readable_errors` says it in a sentence. MLflow's own switch would also
    # change the root logger's level.
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with readable_errors(uri):
        return MlflowClient(tracking_uri=uri)


class Tracker:
    """The MLflow experiment that Umbra's runs are recorded in.

    The `uri` is that of a server or a database. A new experiment keeps its artifacts in
    `artifact_root`, or where MLflow decides.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, or the experiment has been deleted.
    """

    def __init__(self, uri: str, artifact_root: Path | None, experiment: str = EXPERIMENT) -> None:
        self.uri = uri
        self.client = connect(uri)
        root = artifact_root.absolute().as_uri() if artifact_root else None
        self.experiment_id = self._open_experiment(experiment, root)

    def _open_experiment(self, name: str, artifact_root: str | None) -> str:
        """Return the id of the experiment called `name`, created on first use."""
        find = self.client.get_experiment_by_name
        with readable_errors(self.uri):
            if find(name) is None:
                try:
                    self.client.create_experiment(name, artifact_location=artifact_root)
                except MlflowException:
                    # Another run may have created it meanwhile; any other failure is raised.
                    if find(name) is None:
                        raise
            found = find(name)
            _remove_stray_folder(self.uri)
        if found.lifecycle_stage == entities.LifecycleStage.DELETED:
            raise TrackingUnavailable(
                f"the MLflow experiment {name!r} at {without_password(self.uri)} has been deleted: "
                f"restore it with `mlflow experiments restore --experiment-id "
                f"{found.experiment_id}`, or set MLFLOW_TRACKING_URI to another place"
            )
        return str(found.experiment_id)

    def start(self, name: str, identity: RunIdentity, release: StoragePath) -> "TrackedRun":
        """Create a parent run; `release` is the only folder that its artifacts may come from."""
        with readable_errors(self.uri):
            tags = identity.tags()
            run = self.client.create_run(self.experiment_id, _minute(), tags, run_name=name)
        return TrackedRun(self, run.info.run_id, release, identity.void)

    def reopen(self, mlflow_run_id: str, release: StoragePath, *, void: bool) -> "TrackedRun":
        """Return the parent run of that MLflow id, set running again."""
        running = entities.RunStatus.to_string(entities.RunStatus.RUNNING)
        query = (
            f"tags.`{mlflow_tags.MLFLOW_PARENT_RUN_ID}` = '{mlflow_run_id}' "
            f"and attributes.status = '{running}'"
        )
        with readable_errors(self.uri):
            self.client.get_run(mlflow_run_id)
            # Stages that are shown as running belong to a process that died.
            for stage in self.client.search_runs([self.experiment_id], query):
                TrackedRun(self, stage.info.run_id, release, void).finish(Ended.FAILED)
            self.client.update_run(mlflow_run_id, status=running)
        return TrackedRun(self, mlflow_run_id, release, void)

    def find(self, run_id: str) -> str | None:
        """Return the MLflow id of an Umbra run's parent, which a crash may have left unrecorded."""
        if not run_id.replace("-", "").replace("_", "").isalnum():
            raise InvalidRequest("a run id holds letters, digits, '-' and '_' only")
        query = f"tags.`umbra.run_id` = '{run_id}'"
        with readable_errors(self.uri):
            found = self.client.search_runs([self.experiment_id], query, max_results=1)
        return found[0].info.run_id if found else None


class StageRun:
    """A run in MLflow, through which only public metrics and artifacts pass.

    Of a `void` run, nothing passes that was made from records: no model, no artifact, no figure.
    """

    def __init__(self, tracker: Tracker, mlflow_id: str, release: StoragePath, void: bool) -> None:
        self.client = tracker.client
        self.uri = tracker.uri
        self.id = mlflow_id
        self._tracker = tracker
        self._release = release
        self._void = void

    def metrics(self, release: Release, step: int = 0) -> None:
        """Write released numbers; raises InvalidRequest for anything but a `Release`."""
        # Nothing has checked the names in a plain dictionary.
        if not isinstance(release, Release):
            raise InvalidRequest(
                f"the tracker takes a Release, found {type(release).__name__}: make one with "
                "Release.plan, .spent, .evaluation, .seconds or .rows"
            )
        at = _minute()
        values = release.values
        if not may_leave(void=self._void):
            values = {name: value for name, value in values.items() if not is_measured(name)}
        batch = [entities.Metric(name, value, at, step) for name, value in values.items()]
        with readable_errors(self.uri):
            self.client.log_batch(self.id, metrics=batch)

    def artifact(self, path: StoragePath, folder: str | None = None) -> None:
        """Copy a file or folder of the run's `release/` to MLflow; see `require_released`."""
        self.require_released(path)
        if not may_leave(void=self._void):
            return
        send = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        with local_copy(path) as copy, readable_errors(self.uri):
            send(self.id, str(copy), folder)

    def require_released(self, path: StoragePath) -> None:
        """Raise InvalidRequest unless `path`, links followed, lies in the run's `release/`."""
        if not path.exists():
            raise InvalidRequest(f"there is no {path.name!r} in the run's release/ folder")
        if not is_within(path, self._release):
            raise InvalidRequest(
                f"{path.name!r} lies outside the run's release/ folder, or a link in it leads "
                "there: only what was released may become an artifact"
            )

    def finish(self, ended: Ended = Ended.FINISHED) -> None:
        """End the run; MLflow's failure is ignored unless the run succeeded.

        Of a run that failed, the reason for its failure is what the user must see.
        """
        try:
            with readable_errors(self.uri):
                status = entities.RunStatus.to_string(ended)
                self.client.set_terminated(self.id, status, _minute())
        except TrackingUnavailable:
            if ended is Ended.FINISHED:
                raise


class TrackedRun(StageRun):
    """The parent run; made by `Tracker.start` or `Tracker.reopen`."""

    def params(self, spec: Spec) -> None:
        """Write the spec, flattened to `section.field`; a spec is public by definition."""
        if not isinstance(spec, Spec):
            raise InvalidRequest(
                f"parameters come from a spec and nowhere else, found {type(spec).__name__}"
            )
        # Whoever has the seed of a void run can take its noise away.
        flat = flatten(spec.model_dump(mode="json", exclude={"privacy": {"seed"}})).items()
        params = [entities.Param(name, value[:_PARAM_CHARACTERS]) for name, value in flat]
        with readable_errors(self.uri):
            for start in range(0, len(params), _PARAMS_PER_CALL):
                self.client.log_batch(self.id, params=params[start : start + _PARAMS_PER_CALL])

    def log_dataset(self, name: str) -> None:
        """Record which declared data set was used, by name alone."""
        # MLflow would compute a digest of the content, and a plain hash of private data is a leak:
        # this is a digest of the name.
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        dataset = entities.Dataset(name=name, digest=digest, source_type="declared", source="{}")
        with readable_errors(self.uri):
            self.client.log_inputs(self.id, [entities.DatasetInput(dataset)])

    def ledger_head(self, head: str) -> None:
        """Replace the ledger's head hash, by which a truncated ledger is recognised."""
        with readable_errors(self.uri):
            self.client.set_tag(self.id, "umbra.ledger_head", head)

    def log_sampling_model(self, weights: StoragePath, spec: Spec) -> str | None:
        """Log the model that samples as an output of the run; return its URI, `models:/<id>`.

        The model of a void run stays in the run, and None is returned.

        Raises:
            InvalidRequest: the weights lie outside the run's `release/` folder.
            TrackingUnavailable: MLflow cannot be reached.
        """
        from mlflow.models import Model

        self.require_released(weights)
        if not may_leave(void=self._void):
            return None
        with readable_errors(self.uri), tempfile.TemporaryDirectory() as scratch:
            logged = self.client.create_logged_model(
                self._tracker.experiment_id, MODEL, source_run_id=self.id, model_type="pyfunc"
            )
            status = entities.LoggedModelStatus.FAILED
            try:
                folder = Path(scratch) / "model"
                record = Model(run_id=self.id, model_uuid=logged.model_id, model_id=logged.model_id)
                save_sampling_model(folder, weights, spec, record)
                self.client.log_model_artifacts(logged.model_id, str(folder))
                status = entities.LoggedModelStatus.READY
            finally:
                self.client.finalize_logged_model(logged.model_id, status)
            self.client.log_outputs(self.id, [entities.LoggedModelOutput(logged.model_id, step=0)])
        return f"models:/{logged.model_id}"

    @contextmanager
    def stage(self, name: str) -> Iterator[StageRun]:
        """Open a child run around one stage, which ends as its block does.

        The exception itself is not written: its text may hold data.
        """
        tags = {mlflow_tags.MLFLOW_PARENT_RUN_ID: self.id, "umbra.stage": name}
        with readable_errors(self.uri):
            of = self._tracker.experiment_id
            child = self.client.create_run(of, _minute(), tags, run_name=name)
        stage = StageRun(self._tracker, child.info.run_id, self._release, self._void)
        started = monotonic()
        try:
            yield stage
        except BaseException as error:
            stage.finish(Ended.by(error))
            raise
        stage.metrics(Release.seconds(name, monotonic() - started))
        stage.finish()


def _remove_stray_folder(uri: str) -> None:
    """Remove what MLflow makes, empty: the folder of a database by its name as escaped in `uri`."""
    folder = Path(uri.removeprefix("sqlite:///")).parent
    with suppress(OSError):  # one that is not empty is somebody's
        while uri.startswith("sqlite:///") and unquote(str(folder)) != str(folder):
            folder.rmdir()
            folder = folder.parent


def _minute() -> int:
    """Return the time in milliseconds, in whole minutes: a training's time follows its batches."""
    return time_ns() // 60_000_000_000 * 60_000


def save_sampling_model(
    folder: Path, weights: StoragePath, spec: Spec, mlflow_model: Any = None
) -> None:
    """Write an MLflow model to a new `folder`: weights, `sampling.json`, the code that samples.

    Of the spec, only what sampling needs is written: not the data source. `weights` are the
    safetensors of the averaged denoiser; `mlflow_model` is MLflow's record to fill, if any.
    """
    # They bring torch and pandas in, which a run that is only cancelled or read does not need.
    import mlflow.pyfunc

    from pipeline.models import Recipe
    from pipeline.tracking import sampling_model as code

    with tempfile.TemporaryDirectory() as scratch, local_copy(weights) as copy:
        sampling = Path(scratch) / "sampling.json"
        recipe = Recipe.of(spec, weights_mark(copy.read_bytes()))
        sampling.write_text(recipe.model_dump_json(indent=2), encoding="utf-8")
        with warnings.catch_warnings():
            # The signature is explicit, so no example is needed to infer it.
            warnings.filterwarnings("ignore", message=".*[Aa]n input example was not provided")
            mlflow.pyfunc.save_model(
                path=str(folder),
                python_model=code.__file__,
                artifacts={code.WEIGHTS: str(copy), code.SAMPLING: str(sampling)},
                signature=code.SIGNATURE,
                # Explicit: to infer them, MLflow would load the model in a second process.
                pip_requirements=[f"umbra-synth=={importlib.metadata.version('umbra-synth')}"],
                mlflow_model=mlflow_model,
            )


def flatten(nested: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return nested mappings as one level of dotted names; lists and scalars as their text.

    >>> flatten({"a": {"b": 1}, "c": None, "d": [2]})
    {'a.b': '1', 'd': '[2]'}
    """
    flat: dict[str, str] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = str(value)
    return flat
