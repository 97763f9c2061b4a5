"""One run of noisy moments from spec to export, on real Ray and MLflow, by the command line."""

import json
import os
import subprocess
import sys
from collections import Counter

import mlflow
import pandas as pd
import pytest
import yaml

from pipeline.home import Home
from synth.data.manifest import load_manifest, verify
from synth.data.shards import read_shards
from tests.builders import DIGITS_MOMENTS

pytestmark = pytest.mark.slow
PATIENCE = 300  # seconds, for a machine that is busy with other things


def umbra(home, *arguments):
    dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "UMBRA_LEDGER_URL")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", *arguments],
        env={**env, "UMBRA_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments")
    spec = yaml.safe_load(DIGITS_MOMENTS)
    spec["resources"] = {"workers": 2}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    declared = ("--epsilon", "5", "--delta", "1e-4", "--public")
    umbra(folder / "home", "budget", "declare", "digits", *declared)
    umbra(folder / "home", "submit", str(folder / "spec.yaml"))
    return folder / "home"


@pytest.fixture
def run(home):
    (found,) = Home.locate({"UMBRA_HOME": str(home)}).runs()
    return found


def test_every_class_has_its_count_and_every_shard_all_classes(run):
    verify(run.release)
    manifest = load_manifest(run.release)
    assert manifest.class_counts == (30, 0, 5, 1, 0, 0, 0, 4, 0, 0)
    shards = list(read_shards(run.release))
    labels = [label for shard in shards for label in shard.labels.tolist()]
    assert Counter(labels) == {0: 30, 2: 5, 3: 1, 7: 4}
    assert len(set(shards[0].labels.tolist())) > 2


def test_the_ledger_holds_every_component_and_the_audit_passes(home, run):
    found = json.loads(umbra(home, "audit", run.run_id, "--json"))
    text = json.dumps(found)
    for part in ("sums", "scatter", "mixture", "histogram", "teacher", "choice"):
        assert part in text
    shown = json.loads(umbra(home, "budget", "show", "--json"))
    assert "digits" in json.dumps(shown)


def test_an_empirical_audit_goes_on_without_the_mechanism(home, run):
    """Which runs a step of DP-SGD, and this method takes none."""
    said = umbra(home, "audit", run.run_id, "--empirical")
    heads = ("Audit of run", "mechanism was not audited", "Audit of the training")
    assert sorted(heads, key=said.index) == list(heads)


def test_it_is_exported(home, run, tmp_path):
    umbra(home, "export", run.run_id, str(tmp_path / "export"), "--format", "npz")
    card = "".join(path.read_text() for path in (tmp_path / "export").glob("*.md"))
    assert "noisy moments" in card
    assert "drawn directly" in card


def test_the_model_in_mlflow_draws_any_class(home, run):
    mlflow.set_tracking_uri(Home.locate({"UMBRA_HOME": str(home)}).mlflow_uri)
    experiment = run.state().mlflow_experiment_id
    (logged,) = mlflow.search_logged_models([experiment], output_format="list")
    model = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
    asked = pd.DataFrame({"label": [4, 9], "count": [3, 2], "seed": [1, 1]})
    first, again = model.predict(asked), model.predict(asked)
    assert first["label"].tolist() == [4, 4, 4, 9, 9]
    assert first["image"].tolist() == again["image"].tolist()
