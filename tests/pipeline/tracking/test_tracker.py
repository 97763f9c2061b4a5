"""Parent and child runs in a real MLflow."""

import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.home import Home, without_password
from pipeline.spec import Spec
from pipeline.tracking.release import Release
from pipeline.tracking.tracker import (
    Ended,
    RunIdentity,
    TrackedRun,
    Tracker,
    TrackingUnavailable,
    flatten,
    readable_errors,
)
from privacy.budget.facts import Shown
from privacy.errors import InvalidRequest


def _children(tracker: Tracker, parent: str) -> list[Run]:
    return list(
        tracker.client.search_runs(
            [tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'"
        )
    )


def test_parent_carries_its_identity(
    tracker: Tracker, run: TrackedRun, identity: RunIdentity
) -> None:
    stored = tracker.client.get_run(run.id)
    assert stored.info.status == "RUNNING"
    assert stored.info.run_name == "digits"
    assert identity.tags().items() <= stored.data.tags.items()
    assert stored.data.tags["umbra.void"] == "false"
    assert stored.data.tags["umbra.gradient_engine"] == "record"
    assert "mlflow.user" not in stored.data.tags


def test_head_moves_on(tracker: Tracker, run: TrackedRun) -> None:
    run.ledger_head("ef" * 32)
    assert tracker.client.get_run(run.id).data.tags["umbra.ledger_head"] == "ef" * 32


def test_stage_is_a_child_with_metrics_and_time(tracker: Tracker, run: TrackedRun) -> None:
    with run.stage("train") as stage:
        stage.metrics(Release.spent({"steps": 10, "epsilon_rdp": 1.5}), step=10)
    (child,) = _children(tracker, run.id)
    assert child.info.run_name == "train"
    assert child.info.status == "FINISHED"
    assert child.data.metrics["spent.epsilon_rdp"] == 1.5
    assert child.data.metrics["time.train"] >= 0
    (point,) = tracker.client.get_metric_history(child.info.run_id, "spent.steps")
    assert (point.value, point.step) == (10.0, 10)


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("pixel 0.731"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_failed_stage_is_marked_without_its_error(
    tracker: Tracker, run: TrackedRun, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), run.stage("train"):
        raise error
    (child,) = _children(tracker, run.id)
    assert child.info.status == status
    assert "0.731" not in str(child.to_dictionary())


def test_stage_error_is_not_masked_by_a_lost_server(
    tracker: Tracker, run: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise OSError("gone")

    with pytest.raises(ValueError, match="the stage's own"), run.stage("train"):
        monkeypatch.setattr(tracker.client, "set_terminated", lost)
        raise ValueError("the stage's own")
    run.finish(Ended.FAILED)
    with pytest.raises(TrackingUnavailable):
        run.finish(Ended.FINISHED)


def test_reopen_and_find_after_a_crash(
    uri: str, tracker: Tracker, run: TrackedRun, release: Path, spec: Spec
) -> None:
    run.params(spec)
    run.finish(Ended.FAILED)
    again = Tracker(uri, None)
    assert again.experiment_id == tracker.experiment_id
    assert again.find("digits-1") == run.id
    assert again.find("another") is None
    reopened = again.reopen(run.id, release, void=False)
    assert again.client.get_run(run.id).info.status == "RUNNING"
    reopened.params(spec)
    with reopened.stage("sample"):
        pass
    reopened.finish(Ended.FINISHED)
    assert again.client.get_run(run.id).info.status == "FINISHED"
    assert len(_children(again, run.id)) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError(), "FAILED")]
)
def test_a_parent_ends_as_its_run_did(
    tracker: Tracker, run: TrackedRun, error: BaseException, status: str
) -> None:
    run.finish(Ended.by(error))
    assert tracker.client.get_run(run.id).info.status == status


def test_a_stage_of_a_process_that_died_has_failed_when_its_run_goes_on(
    tracker: Tracker, run: TrackedRun, identity: RunIdentity, release: Path
) -> None:
    with run.stage("plan"):
        pass
    other = tracker.start("other", identity, release)
    stages = run.stage("train"), other.stage("train")
    for stage in stages:
        stage.__enter__()  # nothing ends it: the process was killed
    tracker.reopen(run.id, release, void=False)
    ended = {child.info.run_name: child.info.status for child in _children(tracker, run.id)}
    assert ended == {"plan": "FINISHED", "train": "FAILED"}
    assert [child.info.status for child in _children(tracker, other.id)] == ["RUNNING"]


def test_reopen_of_an_unknown_run_is_a_readable_error(tracker: Tracker, release: Path) -> None:
    with pytest.raises(TrackingUnavailable, match="RESOURCE_DOES_NOT_EXIST"):
        tracker.reopen("0" * 32, release, void=False)


def test_find_refuses_filter_injection(tracker: Tracker) -> None:
    with pytest.raises(InvalidRequest):
        tracker.find("x' OR 'a' = 'a")


def test_params_are_the_flat_spec(tracker: Tracker, run: TrackedRun, spec: Spec) -> None:
    run.params(spec)
    params = tracker.client.get_run(run.id).data.params
    assert params["privacy.epsilon"] == "10.0"
    assert params["model.multipliers"] == "[1, 2]"
    assert params["synthesize.churn.s_churn"] == "50.0"


@pytest.mark.parametrize("smuggled", [{"spent.steps": 1.0}, {"loss": 0.5}, None, 3.0])
def test_metrics_take_a_release_and_nothing_else(run: TrackedRun, smuggled: object) -> None:
    with pytest.raises(InvalidRequest, match="Release"):
        run.metrics(smuggled)  # type: ignore[arg-type]


def test_params_take_a_spec_and_nothing_else(run: TrackedRun) -> None:
    with pytest.raises(InvalidRequest, match="spec"):
        run.params({"train_loss": 0.5})  # type: ignore[arg-type]


def test_artifact_from_release(tracker: Tracker, run: TrackedRun, release: Path) -> None:
    (release / "report.html").write_text("<p>")
    (release / "data").mkdir()
    (release / "data" / "shard").write_text("x")
    run.artifact(release / "report.html")
    run.artifact(release / "data", "data")
    assert {item.path for item in tracker.client.list_artifacts(run.id)} == {"report.html", "data"}
    assert [item.path for item in tracker.client.list_artifacts(run.id, "data")] == ["data/shard"]


def test_artifact_from_outside_release_is_refused(run: TrackedRun, release: Path) -> None:
    private = release.parent / "internal" / "losses.json"
    private.write_text("[0.5]")
    (release / "link.json").symlink_to(private)
    (release / "folder").mkdir()
    (release / "folder" / "deep.json").symlink_to(private)
    inside = (release / "link.json", release / "folder")
    for path in (private, release / ".." / "internal" / "losses.json", *inside):
        with pytest.raises(InvalidRequest, match="outside"):
            run.artifact(path)
    with pytest.raises(InvalidRequest, match="no 'absent'"):
        run.artifact(release / "absent")


def test_dataset_is_logged_by_name_alone(tracker: Tracker, run: TrackedRun) -> None:
    run.log_dataset("digits")
    (noted,) = tracker.client.get_run(run.id).inputs.dataset_inputs
    assert noted.dataset.name == "digits"
    assert noted.dataset.digest == hashlib.sha256(b"digits").hexdigest()[:16]
    assert not noted.dataset.schema
    assert not noted.dataset.profile


def test_error_for_a_deleted_experiment_says_how_to_restore(uri: str, tracker: Tracker) -> None:
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingUnavailable, match="restore") as error:
        Tracker(uri, None)
    # Umbra has no setting for it.
    assert "another experiment" not in str(error.value)


def test_no_message_hides_its_reason_or_quotes_a_password(uri: str, tmp_path: Path) -> None:
    """Of a database of another version, a store that MLflow dropped, a server out of reach."""
    path = uri.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("update alembic_version set version_num = '0584bdc529eb'")
        connection.commit()
    with pytest.raises(TrackingUnavailable, match="mlflow db upgrade"):
        Tracker(uri, None)
    with pytest.raises(TrackingUnavailable, match="database backend"):
        Tracker(str(tmp_path / "mlruns"), None)
    server = "http://ada:word@127.0.0.1:1/m?api_key=word"
    with pytest.raises(TrackingUnavailable, match="refused") as error, readable_errors(server):
        raise MlflowException(f"API request to {server}/api failed: connection refused")
    assert "word" not in str(error.value) and error.value.__suppress_context__


def test_a_home_of_any_name_gets_its_database_and_nothing_is_made_beside_it(
    tmp_path: Path, migrated: Path
) -> None:
    home = Home.locate({"UMBRA_HOME": str(tmp_path / "feature%2Fx?y=1" / "home")}).ensure()
    shutil.copy(migrated, home.path / "mlflow.db")
    tracker = Tracker(home.mlflow_uri, home.artifacts)
    assert tracker.find("digits-1") is None
    assert [path.name for path in tmp_path.iterdir()] == ["feature%2Fx?y=1"]


def test_times_tell_minutes_and_no_more(tracker: Tracker, run: TrackedRun) -> None:
    """A training takes longer the more records were in its batches."""
    with run.stage("train") as stage:
        stage.metrics(Release.spent({"steps": 10}))
    run.finish()
    for found in (tracker.client.get_run(run.id), *_children(tracker, run.id)):
        assert found.info.start_time % 60_000 == found.info.end_time % 60_000 == 0
        for name in found.data.metrics:
            (point,) = tracker.client.get_metric_history(found.info.run_id, name)
            assert point.timestamp % 60_000 == 0
    assert Release.seconds("train", 3725.83).values == {"time.train": 3700.0}


def test_unreachable_database_is_a_readable_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingUnavailable, match="MLFLOW_TRACKING_URI"):
        Tracker(f"sqlite:///{tmp_path}/file/mlflow.db", None)


def test_password_is_removed() -> None:
    assert without_password("postgresql://u:p@db:5432/m?x=1") == "postgresql://db:5432/m?x=1"
    assert without_password("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None, "f": False}
    assert flatten(nested) == {"a.b": "1", "a.c.d": "[1, 2]", "f": "False"}


def test_a_process_is_quiet_without_telemetry_and_on_a_full_disk(
    tmp_path: Path, migrated: Path
) -> None:
    program = f"""
import resource
from dataclasses import replace
from pathlib import Path
from pipeline.tracking.tracker import Ended, RunIdentity, Tracker, TrackingUnavailable
tracker = Tracker("sqlite:///{migrated}", Path({str(tmp_path)!r}), "quiet")
run = tracker.start("n", RunIdentity("r", "s", "l", "h", True, "record"), Path({str(tmp_path)!r}))
with run.stage("plan"):
    pass
run.finish(Ended.FINISHED)
import mlflow.telemetry
assert mlflow.telemetry.get_telemetry_client() is None
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
try:
    run.ledger_head("ab" * 32)
except TrackingUnavailable as error:
    raise SystemExit(3)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "CI"))}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "false"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_client_keeps_no_active_run(run: TrackedRun) -> None:
    import mlflow

    with run.stage("train"):
        assert mlflow.active_run() is None
    assert isinstance(run.client, MlflowClient)


class TestVoid:
    """Nothing of a seeded run that was made from records reaches MLflow."""

    @pytest.fixture
    def void(self, tracker, identity, release):
        return tracker.start("void", replace(identity, void=True), release)

    def test_no_artifact_and_no_model(self, void, tracker, release, spec):
        page = release / "report.html"
        page.write_text("<p>images</p>")
        void.artifact(page)
        assert void.log_sampling_model(page, spec) is None
        assert tracker.client.list_artifacts(void.id) == []
        assert tracker.client.search_logged_models([tracker.experiment_id]) == []

    def test_no_figure_that_was_measured(self, void, tracker):
        void.metrics(Release.evaluation({"logreg.accuracy": 0.5}, Shown(holdout=True)))
        void.metrics(Release.paid({"logreg.accuracy": 0.5}))
        void.metrics(Release.rows(7))
        assert set(tracker.client.get_run(void.id).data.metrics) == {"rows"}

    def test_no_seed(self, void, tracker, spec):
        seeded = spec.model_copy(update={"privacy": spec.privacy.model_copy(update={"seed": 7})})
        void.params(seeded)
        params = tracker.client.get_run(void.id).data.params
        assert "privacy.seed" not in params and params["privacy.epsilon"] == "10.0"

    def test_nor_when_it_is_reopened(self, void, tracker, release):
        page = release / "report.html"
        page.write_text("<p>images</p>")
        tracker.reopen(void.id, release, void=True).artifact(page)
        assert tracker.client.list_artifacts(void.id) == []
