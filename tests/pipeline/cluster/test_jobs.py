"""The environment of a job, and what is read from a cluster's report of it."""

import pytest

from pipeline.cluster.connection import OPEN_CLUSTER
from pipeline.cluster.jobs import _last_line, _NoSuchJob, _sanitized, job_environment
from pipeline.home import Home
from pipeline.runs.directory import RayJob
from privacy.errors import UmbraError


@pytest.mark.parametrize(
    ("url", "passed"),
    [
        ("postgresql://umbra@db/umbra", True),
        ("postgresql://umbra:word@db/umbra", False),
        ("postgresql://db/umbra?password=word", False),
        ("postgresql://db/umbra?sslmode=require", True),
        ("http://tracking:5000", True),
        ("https://token@tracking", False),
        ("https://tracking?api_key=word", False),
    ],
)
def test_an_address_with_a_secret_is_not_passed_to_a_job(url, passed):
    home = Home.locate({"UMBRA_HOME": "/h", "UMBRA_LEDGER_URL": url, "MLFLOW_TRACKING_URI": url})
    variables = job_environment(home)
    assert ("UMBRA_LEDGER_URL" in variables) == ("MLFLOW_TRACKING_URI" in variables) == passed
    assert "word" not in str(variables)


def test_a_job_gets_its_environment_without_secrets(monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "word")
    monkeypatch.delenv(OPEN_CLUSTER, raising=False)
    variables = job_environment(Home.locate({"UMBRA_HOME": "/h", "UMBRA_AUTHOR": "ada"}))
    assert variables == {
        "UMBRA_HOME": "/h",
        "UMBRA_AUTHOR": "ada",
        "UMBRA_LEDGER_URL": "sqlite:////h/ledger.db",
        "MLFLOW_TRACKING_URI": "sqlite:////h/mlflow.db",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
    }
    monkeypatch.setenv(OPEN_CLUSTER, "1")
    assert job_environment(Home.locate({"UMBRA_HOME": "/h"}))[OPEN_CLUSTER] == "1"


def test_every_submission_has_its_own_id():
    names = {RayJob.of("run-1", start, "http://h:1").submission_id for start in (1, 2)}
    assert names == {"umbra-run-1-1", "umbra-run-1-2"}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("failed with code 2, logs:\n{}\numbra: there is no run 'x'\n", "there is no run 'x'"),
        ("bash: umbra: command not found", "bash: umbra: command not found"),
        ("", ""),
    ],
)
def test_the_message_of_a_job_is_its_own_last_line(message, words):
    assert _last_line(message) == words


def test_a_trace_of_the_server_is_removed():
    with pytest.raises(UmbraError, match="HTTP 500") as raised, _sanitized("http://h:1"):
        raise RuntimeError("Request failed with status code 500: Traceback (most recent ...")
    assert "Traceback" not in str(raised.value)
    with pytest.raises(_NoSuchJob), _sanitized("http://h:1"):
        raise RuntimeError("Request failed with status code 404: Job x does not exist.")
