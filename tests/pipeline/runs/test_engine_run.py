"""One run through cancellation, a kill and damage, on real Ray and MLflow, by the command line.

Cancelled, then killed in mid-training, then resumed with its newest checkpoint damaged, to its end.
The run is made once for all tests, and for all xdist workers, that look at it.
"""

import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml

from pipeline.home import Home
from pipeline.runs.dataset_identity import RUN_KEY
from privacy.budget import Budget
from privacy.ledger import Kind, Ledger
from synth.checkpoint import newest
from synth.data.manifest import load_manifest, verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="processes are read from /proc"),
]

STEPS = 100
BLOCK = 2
SPEC = {
    "name": "tiny",
    "data": {
        "name": "digits",
        "source": {"kind": "digits", "split": "train"},
        "records": 1438,
        "size": 8,
        "channels": 1,
        "classes": [str(label) for label in range(10)],
        "public": True,
        "holdout": {"source": {"kind": "digits", "split": "holdout"}, "public": True},
    },
    "privacy": {"epsilon": 9.9, "delta": 1e-4},
    "model": {"base": 4, "multipliers": [1], "blocks": 1, "attention": []},
    "train": {
        "batch": 64,
        "steps": STEPS,
        "views": 1,
        "ema": 0.9,
        "charge_block": BLOCK,
        "checkpoint_every": BLOCK,
    },
    "synthesize": {"images": 40, "steps": 5, "shard_rows": 10},
    "evaluate": {"classifiers": ["logreg"], "epochs": 2},
}
PATIENCE = 180  # seconds, for a machine that is busy with other things


class Umbra:
    """The command line in a home of its own."""

    def __init__(self, home):
        self.home = home
        dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "UMBRA_LEDGER_URL")
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in dropped and not name.startswith("RAY_")
        }
        self.env = {**kept, "UMBRA_HOME": str(home), "OMP_NUM_THREADS": "1"}

    def start(self, *arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli.main", *arguments],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    def ray_processes(self):
        """Ids of Ray's processes that were started in this home."""
        mark = f"UMBRA_HOME={self.home}".encode()
        found = set()
        for entry in Path("/proc").iterdir():
            try:
                environ, command = (
                    (entry / "environ").read_bytes(),
                    (entry / "cmdline").read_bytes(),
                )
            except OSError:
                continue
            if mark in environ.split(b"\0") and b"ray" in command and b"pipeline" not in command:
                found.add(int(entry.name))
        return found


def _until(condition, process=None):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def _listening(pids):
    """Addresses that the processes listen on."""
    inodes = set()
    for pid in pids:
        try:
            links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                words = fields[1].split(":")[0]
                parts = [bytes.fromhex(words[i : i + 8])[::-1] for i in range(0, len(words), 8)]
                address = ipaddress.ip_address(b"".join(parts))
                found.add(str(getattr(address, "ipv4_mapped", None) or address))
    return found


def _steps(run):
    names = [path.name for path in (run / "internal" / "checkpoints").glob("step-*")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def _live_through_all(folder):
    umbra = Umbra(folder / "home")
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    seen = {"spec": str(spec)}
    declare = ("budget", "declare", "digits", "--epsilon", "20", "--delta", "1e-4", "--public")
    assert umbra.run(*declare)[0] == 0

    process = umbra.start("submit", str(spec))
    runs = umbra.home / "runs"

    def states():
        return runs.glob("*/state.json")

    _until(lambda: any('"stage": "train"' in path.read_text() for path in states()), process)
    (run,) = runs.iterdir()
    _until(lambda: _steps(run) >= 4, process)
    seen["cancel"] = umbra.run("cancel", run.name)
    out, err = process.communicate(timeout=PATIENCE)
    seen["cancelled"] = [process.returncode, out, err]
    seen["state after cancel"] = json.loads((run / "state.json").read_text())
    seen["status after cancel"] = json.loads(umbra.run("status", run.name, "--json")[1])
    seen["cancelled at"] = newest(run / "internal" / "checkpoints").checkpoint.step

    process = umbra.start("resume", run.name)
    _until(lambda: _steps(run) >= seen["cancelled at"] + 6, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    seen["state after kill"] = json.loads((run / "state.json").read_text())
    _until(lambda: not umbra.ray_processes())

    damaged = run / "internal" / "checkpoints" / f"step-{_steps(run):06d}"
    with (damaged / "model.safetensors").open("ab") as file:
        file.write(b"x")
    seen["damaged"] = damaged.name
    seen["sound"] = newest(run / "internal" / "checkpoints").checkpoint.step
    process, addresses, workers = umbra.start("resume", run.name, "--json"), set(), defaultdict(set)
    while process.poll() is None:
        pids = umbra.ray_processes()
        addresses |= _listening(pids | {process.pid})
        for pid in pids:
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
            except OSError:
                continue
            for name, _, value in (entry.partition("=") for entry in environ):
                workers[name].add(value)
        time.sleep(0.2)
    out, err = process.communicate()
    seen |= {"resumed": [process.returncode, out, err], "addresses": sorted(addresses)}
    seen["environ"] = {name: sorted(values) for name, values in workers.items()}
    seen["left"] = sorted(umbra.ray_processes())
    return {**seen, "run": run.name}


@pytest.fixture(scope="session")
def lived(made_once):
    """(home, what was seen on the way) of the one run."""

    def live(folder):
        return folder, _live_through_all(folder)

    folder, seen = made_once("engine", live)
    return Home.locate({"UMBRA_HOME": str(folder / "home")}), seen


@pytest.fixture
def seen(lived):
    return lived[1]


@pytest.fixture
def run(lived):
    home, seen = lived
    return home.run(seen["run"])


@pytest.fixture
def ledger(lived):
    return Ledger.open(lived[0].ledger_url)


@pytest.fixture
def charges(ledger):
    return [row.content for row in ledger.rows(Kind.CHARGE)]


def test_cancel_ends_the_run_quietly_with_130(seen):
    assert seen["cancel"][0] == 0
    code, out, err = seen["cancelled"]
    assert (code, out) == (130, "")
    lines = [line for line in err.splitlines() if line]
    assert lines[-1] == "umbra: interrupted"
    assert all(line.startswith(("run ", "train: ", "umbra: ")) for line in lines)
    state = seen["state after cancel"]
    assert (state["status"], state["process"]) == ("cancelled", None)


def test_a_cancelled_run_has_trained_all_that_it_charged(seen, charges):
    """It wrote a checkpoint where it stood, so that resuming it forfeits nothing."""
    charged = sum(charge["steps"] for charge in charges if charge["attempt"] == 1)
    assert 4 <= seen["cancelled at"] == charged < STEPS
    steps = seen["status after cancel"]["steps"]
    assert steps == {"planned": STEPS, "charged": charged, "trained": charged}


def test_steps_trained_stand_beside_steps_charged(run, seen, lived):
    trained = newest(run.internal / "checkpoints").checkpoint.step
    assert trained < STEPS
    assert run.state().trained_steps == trained
    steps = json.loads(seen["resumed"][1])["privacy"]["steps"]
    assert steps == f"{trained} trained, {STEPS} charged, {STEPS} planned"
    page = " ".join((run.release / "report.html").read_text().split())
    assert f"Of {STEPS} charged steps of training, {trained} went into the model" in page


def test_a_killed_driver_is_seen_to_be_dead_and_the_run_resumed_to_its_end(seen, run):
    assert seen["state after kill"]["status"] == "running"
    code, out, _ = seen["resumed"]
    assert code == 0 and json.loads(out)["run_id"] == run.run_id
    state = run.state()
    assert (state.status, state.attempt, state.process) == ("done", 3, None)
    stages = [record.name for record in state.stages]
    assert stages == ["ingest", "train", "synthesize", "evaluate", "report"]


def test_nothing_but_progress_is_on_standard_error_or_in_the_log(seen, run):
    assert seen["resumed"][2] == ""
    known = ("train: ", "synthesize: ", "evaluate: ", "report: ")
    lines = run.log_path.read_text().splitlines()
    assert lines and all(line.startswith(known) for line in lines if line)


def test_no_process_of_the_cluster_outlives_the_run(seen):
    assert seen["left"] == []


def test_the_embedded_cluster_listens_on_the_loopback_only(seen):
    assert seen["addresses"]
    assert all(ipaddress.ip_address(address).is_loopback for address in seen["addresses"])


def test_workers_report_their_use_to_nobody(seen):
    assert seen["environ"]["RAY_USAGE_STATS_ENABLED"] == ["0"]


def test_every_reserved_step_is_charged_once_and_the_reservation_settled(ledger, charges, run):
    assert sum(charge["steps"] for charge in charges) == STEPS
    assert all(charge["steps"] <= BLOCK for charge in charges)
    (settlement,) = ledger.rows(Kind.SETTLE)
    assert settlement.content["charged"] == {"dp-sgd": STEPS}
    odometer = Budget(ledger).odometer("digits")
    assert (odometer.open_reservations, odometer.reserved) == (0, 0)
    assert ledger.verify() == []
    assert settlement.reservation == run.state().reservation_id


def test_every_start_of_the_training_is_an_attempt_of_its_own(charges):
    attempts = [charge["attempt"] for charge in charges]
    assert attempts == sorted(attempts) and set(attempts) == {1, 2, 3}


def test_more_is_charged_than_was_executed_and_never_less(charges, run, seen):
    """The last attempt went on from the checkpoint, so what came after that one was forfeited."""
    last = newest(run.internal / "checkpoints").checkpoint
    taken = sum(charge["steps"] for charge in charges if charge["attempt"] == 3)
    assert (last.attempt, last.step) == (3, seen["sound"] + taken)
    assert seen["sound"] > 0 and last.step < STEPS


def test_a_checkpoint_is_written_after_its_steps_were_charged(charges, ledger, run):
    last = newest(run.internal / "checkpoints").checkpoint
    heads = {str(row.head) for row in ledger.rows(Kind.CHARGE)}
    assert last.ledger_head in heads


def test_a_skipped_checkpoint_is_reported(seen, run):
    message = run.state().message
    assert seen["damaged"] in message and "damaged" in message


def test_shards_match_the_manifest(run):
    assert verify(run.release) == []
    manifest = load_manifest(run.release)
    assert [entry.rows for entry in manifest.shards] == [10] * 4
    assert manifest.class_counts == (4,) * 10


def test_metrics_against_public_images_are_released(run):
    released = json.loads((run.release / "metrics.json").read_text())
    assert set(released["synthetic"]) == set(released["ceiling"]) == {"logreg"}


def test_the_report_is_one_page(run):
    page = (run.release / "report.html").read_text()
    assert run.run_id in page and "<script src" not in page and "http" + "://" not in page


def test_released_files_hold_no_secret(run):
    """Neither the run's key nor the fingerprint leaves internal/."""
    secrets = [(run.internal / RUN_KEY).read_bytes(), (run.internal / "train-content").read_bytes()]
    secrets += [secret.hex().encode() for secret in secrets]
    for path in run.release.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(secret in data for secret in secrets), path.name


@pytest.fixture
def client(lived):
    return mlflow.MlflowClient(tracking_uri=lived[0].mlflow_uri)


@pytest.fixture
def tracked(client, run):
    return client.get_run(run.state().mlflow_run_id)


def _children(client, parent):
    tag = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    return client.search_runs([parent.info.experiment_id], tag)


def test_mlflow_has_one_parent_and_a_child_for_every_stage_begun(client, tracked):
    found = client.search_runs([tracked.info.experiment_id])
    children = _children(client, tracked)
    assert len(found) == 1 + len(children) and tracked.info.status == "FINISHED"
    finished = sorted(child.info.run_name for child in children if child.info.status == "FINISHED")
    assert finished == ["evaluate", "report", "synthesize", "train"]
    assert [c.info.run_name for c in children if c.info.status == "KILLED"] == ["train"]
    # The killed driver's, which could not say so; the next start did.
    assert [c.info.run_name for c in children if c.info.status == "FAILED"] == ["train"]
    assert not [c for c in children if c.info.status == "RUNNING"]


def test_mlflow_has_the_spec_and_released_numbers_only(client, tracked, ledger):
    assert tracked.data.params["train.steps"] == str(STEPS)
    assert tracked.data.tags["umbra.ledger_head"] == str(ledger.head())
    spent = {}
    for member in (tracked, *_children(client, tracked)):
        for name, value in member.data.metrics.items():
            assert name == "rows" or name.split(".")[0] in {"plan", "spent", "eval", "time"}, name
            spent[name] = value
    assert spent["spent.steps"] == STEPS
    assert spent["spent.epsilon_pld"] <= spent["spent.epsilon_rdp"] <= 9.9
    assert "eval.logreg.accuracy" in spent and spent["rows"] == 40


def test_mlflow_has_the_report(client, tracked):
    names = [entry.path for entry in client.list_artifacts(tracked.info.run_id)]
    assert "report.html" in names


def test_the_model_in_mlflow_samples_images_of_a_class(lived, client, tracked):
    mlflow.set_tracking_uri(lived[0].mlflow_uri)
    (output,) = tracked.outputs.model_outputs
    model = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    images = model.predict(pd.DataFrame({"label": [3], "count": [2]}))
    assert list(images["label"]) == [3, 3]
    assert all(image.startswith(b"\x89PNG") for image in images["image"])
