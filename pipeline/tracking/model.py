"""Logs the released weights to MLflow as a model that samples."""

import importlib.metadata
import tempfile
import warnings
from pathlib import Path

import mlflow.pyfunc
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model

from pipeline.models import Recipe
from pipeline.spec import Spec
from pipeline.tracking import sampling_model
from pipeline.tracking.tracker import TrackedRun, readable_errors
from synth.storage import StoragePath, local_copy

NAME = "sampler"


def save_sampling_model(
    folder: Path, weights: StoragePath, spec: Spec, mlflow_model: Model | None = None
) -> None:
    """Write an MLflow model to a new `folder`: weights, `sampling.json`, the code that samples.

    Of the spec, only what sampling needs is written: not the data source. `weights` are the
    safetensors of the averaged denoiser; `mlflow_model` is MLflow's record to fill, if any.
    """
    with tempfile.TemporaryDirectory() as scratch, local_copy(weights) as copy:
        sampling = Path(scratch) / "sampling.json"
        sampling.write_text(Recipe.of(spec).model_dump_json(indent=2), encoding="utf-8")
        with warnings.catch_warnings():
            # The signature is explicit, so no example is needed to infer it.
            warnings.filterwarnings("ignore", message=".*[Aa]n input example was not provided")
            mlflow.pyfunc.save_model(
                path=str(folder),
                python_model=sampling_model.__file__,
                artifacts={
                    sampling_model.WEIGHTS: str(copy),
                    sampling_model.SAMPLING: str(sampling),
                },
                signature=sampling_model.SIGNATURE,
                # Explicit: to infer them, MLflow would load the model in a second process.
                pip_requirements=[f"umbra-synth=={importlib.metadata.version('umbra-synth')}"],
                mlflow_model=mlflow_model,
            )


def log_sampling_model(run: TrackedRun, weights: StoragePath, spec: Spec) -> str:
    """Log the sampling model as an output of `run`; return its URI, `models:/<id>`.

    Raises:
        InvalidRequest: the weights lie outside the run's `release/` folder.
        TrackingUnavailable: MLflow cannot be reached.
    """
    run.require_released(weights)
    client = run.client
    with readable_errors(run.uri), tempfile.TemporaryDirectory() as scratch:
        logged = client.create_logged_model(
            run.experiment_id, name=NAME, source_run_id=run.id, model_type="pyfunc"
        )
        try:
            folder = Path(scratch) / "model"
            record = Model(run_id=run.id, model_uuid=logged.model_id, model_id=logged.model_id)
            save_sampling_model(folder, weights, spec, record)
            client.log_model_artifacts(logged.model_id, str(folder))
        except BaseException:
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
            raise
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        client.log_outputs(run.id, [LoggedModelOutput(logged.model_id, step=0)])
    return f"models:/{logged.model_id}"
