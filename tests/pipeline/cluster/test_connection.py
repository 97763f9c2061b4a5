import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray

from pipeline.cluster import connection
from pipeline.cluster.calls import check_abort_conditions
from privacy.errors import UmbraError


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # Those that pytest makes have long names.
    monkeypatch.setattr(connection, "_LONGEST_BASE", 1000)
    return tmp_path


def test_the_folder_is_private_and_ends_with_its_block(scratch):
    with connection._private_folder() as folder:
        assert Path(folder).parent == scratch
        assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert list(scratch.iterdir()) == []


def test_folders_of_killed_processes_are_removed_and_those_in_use_are_not(scratch):
    with connection._private_folder() as used:
        (scratch / "umbra-ray-dead").mkdir()
        (scratch / "umbra-ray-dead" / "worker.err").write_text("what a library printed")
        (scratch / "other").mkdir()
        with connection._private_folder():
            left = {path.name for path in scratch.iterdir()}
            assert {Path(used).name, "other"} < left and "umbra-ray-dead" not in left


@pytest.mark.slow
def test_sockets_fit_into_the_longest_folder_that_is_taken(monkeypatch):
    """In a process of its own, as this one may be connected to another cluster."""
    base = Path("/tmp", f"umbra-{os.getpid()}-".ljust(connection._LONGEST_BASE - 5, "x"))
    base.mkdir()
    code = "from pipeline.cluster.connection import cluster\nwith cluster(None): pass"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(base)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    finally:
        shutil.rmtree(base)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_loopback_is_accepted(address):
    connection._require_loopback(address)


def test_an_address_that_others_reach_is_refused():
    with pytest.raises(UmbraError, match="where others may reach it"):
        connection._require_loopback("192.0.2.7")


def test_a_cluster_that_cannot_be_joined_is_an_error_of_one_sentence(monkeypatch):
    def refuse(**arguments):
        raise ConnectionError("no answer\nTraceback (most recent call last)")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    words = r"at 10\.0\.0\.9:6379 could not be joined.*no answer"
    with pytest.raises(UmbraError, match=words) as raised, connection.cluster("10.0.0.9:6379"):
        pass
    assert "Traceback" not in str(raised.value)


def test_the_callers_sigterm_handler_stays_in_force(monkeypatch):
    def init(**arguments):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr("pipeline.cluster.calls.lost_node_condition", lambda: lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    with connection.cluster("10.0.0.9:6379") as there:
        assert signal.getsignal(signal.SIGTERM) == before
        assert there == {"CPU": 3.0, "GPU": 0.0}


def test_a_machine_that_is_lost_to_the_cluster_ends_the_block(monkeypatch):
    for name in ("init", "shutdown"):
        monkeypatch.setattr(ray, name, lambda **arguments: None)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    lost = UmbraError("the raylet died")
    monkeypatch.setattr("pipeline.cluster.calls.lost_node_condition", lambda: lambda: lost)
    with pytest.raises(UmbraError, match="the raylet died"), connection.cluster("10.0.0.9:6379"):
        check_abort_conditions()
