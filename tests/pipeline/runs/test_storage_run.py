"""A whole run whose checkpoints and release lie in an object store, killed and resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.audit.ledger import audit_run
from pipeline.cluster.sampling import ShardSampler
from pipeline.home import Home
from pipeline.runs.export import export_run
from pipeline.runs.ledger_access import LedgerAccess
from pipeline.spec import load_spec
from privacy.budget import Budget
from privacy.ledger import Kind, Ledger
from privacy.ledger.records import Facts
from synth.checkpoint import newest
from synth.data.manifest import load_manifest, verify
from synth.data.shards import plan_shards
from synth.export.documents import verify_export
from synth.storage import ObjectPath, local_copy, relative

pytestmark = pytest.mark.slow

STEPS = 80
SPEC = {
    "name": "stored",
    "data": {
        "name": "digits",
        "source": {"kind": "digits", "split": "train"},
        "records": 1438,
        "size": 8,
        "channels": 1,
        "classes": [str(label) for label in range(10)],
    },
    "privacy": {"epsilon": 9.9, "delta": 1e-4},
    "model": {"base": 4, "multipliers": [1], "blocks": 1, "attention": []},
    "train": {
        "batch": 64,
        "steps": STEPS,
        "views": 1,
        "ema": 0.9,
        "charge_block": 4,
        "checkpoint_every": 4,
    },
    "synthesize": {"images": 40, "steps": 5, "shard_rows": 10},
    "resources": {"storage": "s3://umbra/private/runs"},
}
PATIENCE = 180  # seconds, for a machine that is busy with other things


class Umbra:
    """The command line in a home of its own."""

    def __init__(self, home: Path) -> None:
        dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "UMBRA_LEDGER_URL")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        self.env = {**kept, "UMBRA_HOME": str(home), "OMP_NUM_THREADS": "1"}

    def start(self, *arguments):
        command = [sys.executable, "-m", "pipeline.cli.main", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self.env, text=True, **pipes)

    def run(self, *arguments):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        return out


def test_killed_resumed_exported_and_audited_with_all_files_in_a_store(s3, tmp_path):
    umbra, home = Umbra(tmp_path / "home"), Home.locate({"UMBRA_HOME": str(tmp_path / "home")})
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    home.ensure()
    Budget(LedgerAccess.of(home).open()).declare("digits", 20.0, 1e-4, Facts(public=True))
    storage = ObjectPath.parse("s3://umbra/private/runs")

    process, end = umbra.start("submit", str(tmp_path / "spec.yaml")), time.monotonic() + PATIENCE
    while not any(list(run.checkpoints.glob("step-*/checkpoint.json")) for run in home.runs()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (run,) = home.runs()
    before = newest(run.checkpoints).checkpoint
    assert before.step > 0 and newest(run.checkpoints).skipped == ()

    umbra.run("resume", run.run_id, "--json")
    ledger = Ledger.open(home.ledger_url)
    charges = [row.content for row in ledger.rows(Kind.CHARGE)]
    assert sum(charge["steps"] for charge in charges) == STEPS
    after = newest(run.checkpoints).checkpoint
    assert (after.attempt, after.step > before.step) == (2, True)

    # In the store: what may leave, and apart from it what may not. On this machine: the rest.
    names = {relative(path, storage / run.run_id) for path in storage.rglob("*")}
    assert {name.split("/")[0] for name in names} <= {"release", "checkpoints"}
    assert {"release/manifest.json", "release/report.html"} <= names
    assert "release/model/weights.safetensors" in names
    assert not (run.path / "release").exists()
    assert not (run.internal / "checkpoints").exists()
    assert verify(run.release) == []

    # The rows are those that local files would hold: the same weights give the same bytes.
    spec, manifest = load_spec(run.spec_path), load_manifest(run.release)
    shards = plan_shards(spec.synthesize.class_counts(10), spec.synthesize.shard_rows)
    with local_copy(run.release / "model" / "weights.safetensors") as weights:
        entry = ShardSampler(spec, weights, tmp_path / "again").make(shards[1], len(shards))
    assert entry == manifest.shards[1]

    made = export_run(run, Budget(LedgerAccess.of(home).open()), tmp_path / "export", "parquet")
    assert load_manifest(made.folder).rows == 40 and verify_export(made.folder) == []
    assert audit_run(ledger, run).ok and run.state().status == "done"
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    kept = (path for path in (tmp_path / "home").rglob("*") if path.is_file())
    assert not any(secret in path.read_bytes() for path in kept)
