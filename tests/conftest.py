"""Fixtures that tests of more than one package use."""

import os
from urllib.request import Request, urlopen

import pytest
from hypothesis import settings

# Ray reads these when it is imported, which tests do before they start an embedded cluster: it
# stays on the loopback and asks for a token.
os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_AUTH_MODE="token")
# No test asserts a time: hypothesis would fail an example for taking 200 ms on a busy machine.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def run_workers():
    """Call `work(collective)` on `size` workers that are joined; return what each gave, by rank."""
    from privacy.audit.mechanism.runs import run_workers

    return run_workers


@pytest.fixture(scope="session")
def _s3_server():
    # One for the session: a client remembers its server for as long as its process lives.
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(_s3_server, monkeypatch):
    """A real S3 server on loopback, with nothing but the bucket `umbra`; return its address.

    Whatever speaks S3 finds it, and its credentials, by the environment, also in child processes.
    """
    settings = {
        "AWS_ENDPOINT_URL": _s3_server,
        "AWS_ACCESS_KEY_ID": "umbra-tests",
        "AWS_SECRET_ACCESS_KEY": "no-secret-at-all",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    urlopen(Request(f"{_s3_server}/moto-api/reset", method="POST"))
    urlopen(Request(f"{_s3_server}/umbra", method="PUT"))
    return _s3_server
