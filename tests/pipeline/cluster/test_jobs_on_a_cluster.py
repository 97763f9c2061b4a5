"""Runs handed to a real cluster of two processors that asks for a token, by the command line.

Three runs at once on room for one; one that is cancelled, one whose driver is killed, one that the
job cannot find. The cluster is started once, and the runs are made once, for all tests.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import pytest
import yaml

from pipeline.home import Home
from privacy.budget import Budget
from privacy.ledger import Kind, Ledger

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="drivers are read in /proc"),
]

PATIENCE = 200  # seconds, for a machine that is busy with other things
TOKEN = "a" * 64
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
    },
    "privacy": {"epsilon": 5.0, "delta": 1e-4},
    "model": {"base": 4, "multipliers": [1], "blocks": 1, "attention": []},
    "train": {"batch": 64, "steps": 6, "views": 1, "charge_block": 2, "checkpoint_every": 2},
    "synthesize": {"images": 20, "steps": 2, "shard_rows": 10},
    "resources": {"workers": 1},
}


# Another data set, of which a second budget is declared.
OTHERS = {
    **SPEC["data"],
    "name": "others",
    "source": {"kind": "digits", "split": "holdout"},
    "records": 359,
}


def _free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


class Cluster:
    """A head on the loopback, started as an operator would, and `umbra` beside it."""

    def __init__(self, folder, token=TOKEN):
        self.folder = folder
        self.port, self.dashboard, client, agent = _free_ports(4)
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "UMBRA_"))}
        kept.pop("MLFLOW_TRACKING_URI", None)
        self.env = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "UMBRA_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token" if token else "disabled",
            **({"RAY_AUTH_TOKEN": token} if token else {}),
        }
        # A socket's name may have no more than 107 characters.
        self.temporary = tempfile.mkdtemp(prefix="umbra-t-")
        self.head = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "ray"),
                *("start", "--head", "--block", "--node-ip-address", "127.0.0.1"),
                *("--port", str(self.port), "--dashboard-port", str(self.dashboard)),
                *("--dashboard-host", "127.0.0.1", "--ray-client-server-port", str(client)),
                *("--dashboard-agent-listen-port", str(agent), "--num-cpus", "2"),
                *("--object-store-memory", "100000000", "--temp-dir", self.temporary),
            ],
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _until(self._answers)

    @property
    def jobs_api(self):
        return f"http://127.0.0.1:{self.dashboard}"

    def _answers(self):
        assert self.head.poll() is None, "the cluster did not start"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.dashboard)) == 0

    def umbra(self, *arguments, cwd=None, **variables):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli.main", *map(str, arguments)],
            env={**self.env, **variables},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, done.stdout, done.stderr

    def json(self, *arguments, **options):
        code, out, err = self.umbra(*arguments, "--json", **options)
        assert code == 0, (out, err)
        return json.loads(out)

    def stop(self):
        """End what was started here and nothing else: all of it has this folder in its command."""
        self.head.kill()
        self.head.wait()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                ours = self.temporary.encode() in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if ours:
                os.kill(int(entry.name), signal.SIGKILL)
        shutil.rmtree(self.temporary, ignore_errors=True)


def _until(condition, every=0.3):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(every)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    started = Cluster(tmp_path_factory.mktemp("jobs"))
    yield started
    started.stop()


def _spec(cluster, name, **sections):
    path = cluster.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "name": name, **sections}))
    return path


def _when(cluster, run, condition):
    """Wait until the run's state is so, and return what `umbra status` says then.

    Looking at a file costs the cluster's two processors less than asking does.
    """
    folder = Home.locate(cluster.env).run(run)
    _until(lambda: condition(folder.state()))
    return cluster.json("status", run)


def _over(state):
    return state.status in {"done", "failed", "cancelled"}


# Ray's own client, in a process of its own: this one may be connected to another cluster.
ASK_RAY = """
import json, sys
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient(sys.argv[1])
"""
OCCUPY = ASK_RAY + (
    "client.submit_job(entrypoint='sleep 600', submission_id='x', entrypoint_num_cpus=2)"
)
LEAVE = ASK_RAY + "client.stop_job('x')"
SHOW = ASK_RAY + (
    "i = client.get_job_info(sys.argv[2])\n"
    "print(json.dumps([i.runtime_env['env_vars'], i.entrypoint, i.metadata, i.message]))"
)


def _ray(cluster, program, *arguments):
    command = [sys.executable, "-c", program, cluster.jobs_api, *arguments]
    return subprocess.run(command, env=cluster.env, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def queued(cluster):
    """Two runs on one data set, one on another, and a third that the first's budget refuses.

    Somebody else holds the cluster until all of them wait.
    """
    cluster.json("budget", "declare", "digits", "--epsilon", "6.1", "--delta", "1e-4", "--public")
    cluster.json("budget", "declare", "others", "--epsilon", "20", "--delta", "1e-4", "--public")
    _ray(cluster, OCCUPY)
    where = ("--detach", "--address", cluster.jobs_api)
    # Both processors for one that others want, too.
    reported = [cluster.json("submit", _spec(cluster, "first"), *where, "--workers", "2")]
    reported.append(cluster.json("submit", _spec(cluster, "second"), *where))
    refused = cluster.umbra("submit", _spec(cluster, "third"), *where, "--json")
    reported.append(cluster.json("submit", _spec(cluster, "fourth", data=OTHERS), *where))
    runs = [one["run_id"] for one in reported]
    waits = {run: _when(cluster, run, lambda state: state.waiting) for run in runs}
    _ray(cluster, LEAVE)
    ended = {run: _when(cluster, run, _over) for run in runs}
    return {"runs": runs, "refused": refused, "waits": waits, "ended": ended, "reported": reported}


def test_all_queued_runs_finish(queued):
    assert {run: reported["status"] for run, reported in queued["ended"].items()} == dict.fromkeys(
        queued["runs"], "done"
    )


def test_a_waiting_run_reports_what_it_waits_for(queued):
    for reported in queued["waits"].values():
        assert reported["status"] == "queued"
        assert "waits for room for" in reported["reason"] and "of 2 CPU free" in reported["reason"]


def test_a_data_set_has_one_budget_whoever_runs(queued, cluster):
    code, out, _ = queued["refused"]
    assert code == 3 and json.loads(out)["exit_code"] == 3
    ledger = Ledger.open(Home.locate(cluster.env).ledger_url)
    assert Budget(ledger).odometer("digits").open_reservations == 0
    assert len(list(ledger.rows(Kind.RESERVE))) == 3 and ledger.verify() == []


def test_the_spec_stays_whatever_the_workers(queued, cluster):
    run = Home.locate(cluster.env).run(queued["runs"][0])
    assert run.spec().resources.workers == 1
    assert cluster.umbra("audit", run.run_id)[0] == 0


def test_a_job_gets_no_secret_and_sends_no_usage_reports(queued, cluster):
    shown = _ray(cluster, SHOW, queued["reported"][0]["job"]).stdout
    variables = json.loads(shown.splitlines()[-1])[0]
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    assert variables["MLFLOW_DISABLE_TELEMETRY"] == "true"
    key = (cluster.folder / "home" / "key").read_bytes()
    assert not [secret for secret in (TOKEN, key.hex()) if secret in shown]


@pytest.fixture(scope="module")
def interrupted(queued, cluster):
    """A long run: cancelled, its driver killed, resumed as a job each time, and given up."""
    seen = {}
    where = ("--detach", "--address", cluster.jobs_api)
    train = {**SPEC["train"], "steps": 4000}
    spec = _spec(cluster, "long", train=train, data=OTHERS)
    run = cluster.json("submit", spec, *where)["run_id"]

    def trains(state):
        return state.status == "running" and state.stage == "train"

    seen["running"] = _when(cluster, run, trains)
    seen["again"] = cluster.umbra("resume", run, *where)
    seen["cancel"] = cluster.json("cancel", run)
    # The command asks the driver to stop, which takes its time to end the run in MLflow.
    seen["cancelled"] = _when(cluster, run, _over)
    cluster.json("resume", run, *where)
    os.kill(_when(cluster, run, trains)["process"]["pid"], signal.SIGKILL)
    seen["killed"] = cluster.json("status", run)
    seen["runs"] = cluster.umbra("runs")[1]
    seen["given up"] = cluster.json("cancel", run, "--give-up")
    return {**seen, "run": run}


def test_a_running_run_reports_where(interrupted):
    reported = interrupted["running"]
    assert reported["job"]["submission_id"] in reported["where"] and reported["process"]["host"]


def test_a_running_run_is_not_submitted_again(interrupted):
    code, _, err = interrupted["again"]
    assert code == 2 and "cannot be submitted to a cluster" in err


def test_cancel_stops_the_job_and_the_run_is_cancelled(interrupted):
    assert interrupted["cancel"]["stopped"] is True
    reported = interrupted["cancelled"]
    assert (reported["status"], reported["process"]) == ("cancelled", None)


def test_a_cancelled_run_is_killed_in_mlflow(interrupted, cluster):
    home = Home.locate(cluster.env)
    state = home.run(interrupted["run"]).state()
    client = mlflow.MlflowClient(tracking_uri=home.mlflow_uri)
    tag = f"tags.`mlflow.parentRunId` = '{state.mlflow_run_id}'"
    stages = client.search_runs([state.mlflow_experiment_id], tag)
    assert "KILLED" in {stage.info.status for stage in stages}


def test_a_killed_driver_is_explained(interrupted):
    reported = interrupted["killed"]
    assert reported["status"] == "interrupted"
    assert "died" in reported["reason"] and "what was charged stays charged" in reported["reason"]
    assert "umbra resume" in reported["advice"] and "--give-up" in reported["advice"]
    assert "died" in interrupted["runs"]


def test_giving_up_returns_what_was_never_charged(interrupted):
    assert interrupted["given up"]["refunded"]["dp-sgd"] > 0


def test_a_job_that_cannot_find_its_run_fails_with_a_message(cluster, tmp_path):
    """The folder of that name is another one for the cluster."""
    options = {"UMBRA_HOME": "/proc/self/cwd/home", "cwd": tmp_path}
    cluster.json(
        "budget", "declare", "digits", "--epsilon", "9", "--delta", "1e-4", "--public", **options
    )
    where = ("--detach", "--address", cluster.jobs_api)
    run = cluster.json("submit", _spec(cluster, "lost"), *where, **options)["run_id"]

    def failed():
        reported = cluster.json("status", run, **options)
        return reported if reported["status"] == "failed" else None

    reported = _until(failed)
    assert (
        "there is no run" in reported["reason"] and "must be the same folder" in reported["reason"]
    )
    code, out, _ = cluster.umbra("logs", "-f", run, **options)
    assert code == 0 and "there is no run" in out


@pytest.mark.parametrize("at", ["jobs_api", "port"])
def test_a_wrong_token_is_refused_before_a_budget_is_reserved(cluster, at):
    address = cluster.jobs_api if at == "jobs_api" else f"127.0.0.1:{cluster.port}"
    runs = Home.locate(cluster.env).runs
    before = runs()
    code, _, err = cluster.umbra(
        "submit", _spec(cluster, "no"), "--detach", "--address", address, RAY_AUTH_TOKEN="b" * 64
    )
    assert code == 1 and "refused the token" in err
    assert runs() == before
