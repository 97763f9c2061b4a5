"""A real MLflow on SQLite: migrated once a session, copied for each test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.spec import Spec
from pipeline.tracking.tracker import RunIdentity, TrackedRun, Tracker


@pytest.fixture
def uri(migrated: Path, tmp_path: Path) -> str:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def tracker(uri: str, tmp_path: Path) -> Tracker:
    return Tracker(uri, tmp_path / "artifacts")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "release"
    folder.mkdir(parents=True)
    (folder.parent / "internal").mkdir()
    return folder


@pytest.fixture
def identity() -> RunIdentity:
    return RunIdentity(
        "digits-1", "ab" * 32, "ledger-7", "cd" * 32, void=False, gradient_engine="record"
    )


@pytest.fixture
def run(tracker: Tracker, identity: RunIdentity, release: Path) -> Iterator[TrackedRun]:
    return tracker.start("digits", identity, release)


@pytest.fixture(scope="session")
def spec() -> Spec:
    return Spec.model_validate(
        {
            "name": "tiny",
            "data": {
                "name": "digits",
                "source": {"kind": "digits"},
                "records": 1437,
                "size": 8,
                "channels": 1,
                "classes": ("zero", "one", "two"),
            },
            "privacy": {"epsilon": 10.0, "delta": 1e-4},
            "model": {"base": 8, "multipliers": (1, 2), "blocks": 1, "attention": ()},
            "train": {"batch": 64, "steps": 10, "views": 2},
            "synthesize": {"images": 6, "steps": 4, "batch": 4, "guidance": 0.5},
        }
    )
