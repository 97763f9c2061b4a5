"""How Umbra reaches MLflow: quiet, without telemetry, and with errors a user can act on."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.home import without_password
from privacy.errors import UmbraError

EXPERIMENT = "umbra"


class TrackingUnavailable(UmbraError):
    """MLflow cannot be reached or refused a request; nothing of the budget is touched by that."""


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server or database at `uri` that writes nothing to the terminal."""
    # Creating a database announces every migration, and whatever a database refuses is written out
    # with its statement and a traceback before it is raised: `readable_errors` says it in a
    # sentence. MLflow's own switch would also touch the root logger's level, which is not ours.
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with readable_errors(uri):
        return MlflowClient(tracking_uri=uri)


def open_experiment(
    client: MlflowClient, uri: str, name: str, artifact_root: str | None
) -> Experiment:
    """The experiment called `name`, made on first use.

    Args:
        client: a connected client.
        uri: where it is connected to, for error texts.
        name: the experiment.
        artifact_root: where artifacts of a NEW experiment go; None leaves that to the server.

    Raises:
        TrackingUnavailable: MLflow cannot be reached, or the experiment has been deleted.
    """
    with readable_errors(uri):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                client.create_experiment(name, artifact_location=artifact_root)
            except MlflowException:
                # Another run made it between the two calls; any other failure shows just below.
                if client.get_experiment_by_name(name) is None:
                    raise
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise TrackingUnavailable(
            f"the MLflow experiment {name!r} at {without_password(uri)} has been deleted: restore "
            f"it with `mlflow experiments restore --experiment-id {experiment.experiment_id}`, or "
            "name another experiment"
        )
    return experiment


@contextmanager
def readable_errors(uri: str) -> Iterator[None]:
    """Turns MLflow's errors into `TrackingUnavailable`, naming the place without its password."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = getattr(error, "error_code", type(error).__name__)
        raise TrackingUnavailable(
            f"MLflow at {without_password(uri)} refused or did not answer ({reason}): check "
            "MLFLOW_TRACKING_URI and that the place can be written"
        ) from error
