import importlib
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
import ray

from pipeline.cluster import connection
from pipeline.cluster.lean_node import lean_node
from privacy.errors import UmbraError


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
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


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_loopback_is_accepted(address):
    connection._require_loopback(address)


def test_an_address_that_others_reach_is_refused():
    with pytest.raises(UmbraError, match="where others may reach it"):
        connection._require_loopback("192.0.2.7")


def test_a_cluster_that_cannot_be_joined_is_told_in_a_sentence(monkeypatch):
    def refuse(**arguments):
        raise ConnectionError("no answer\nTraceback (most recent call last)")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    words = r"at 10\.0\.0\.9:6379 could not be joined.*no answer"
    with pytest.raises(UmbraError, match=words) as told, connection.cluster("10.0.0.9:6379"):
        pass
    assert "Traceback" not in str(told.value)


def test_sigterm_stays_with_the_caller(monkeypatch):
    def init(**arguments):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr("pipeline.cluster.lost_node.lost_node", lambda: lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    with connection.cluster("10.0.0.9:6379") as there:
        assert signal.getsignal(signal.SIGTERM) == before
        assert there == {"CPU": 3.0, "GPU": 0.0}


def test_a_machine_that_is_lost_to_the_cluster_ends_the_block(monkeypatch):
    for name in ("init", "shutdown"):
        monkeypatch.setattr(ray, name, lambda **arguments: None)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    lost = UmbraError("the raylet died")
    monkeypatch.setattr("pipeline.cluster.lost_node.lost_node", lambda: lambda: lost)
    with pytest.raises(UmbraError, match="the raylet died"), connection.cluster("10.0.0.9:6379"):
        threading.Event().wait(60)


@pytest.mark.slow
def test_nobody_reads_what_workers_print_and_no_idle_server_is_kept(embedded):
    commands = [path.read_bytes() for path in _commands_of_children()]
    assert any(b"gcs_server" in command for command in commands)
    idle = (b"monitor.py", b"dashboard.py")  # with log_monitor.py
    assert [command for command in commands if any(name in command for name in idle)] == []


@pytest.mark.slow
def test_the_agent_does_not_look_for_a_dashboard_for_ever(embedded):
    """Without an address to look at it would ask every second, and log each time that it failed."""
    log = Path(ray._private.worker._global_node.get_logs_dir_path()) / "dashboard_agent.log"
    time.sleep(1.5)  # for an answer that was under way
    before = log.read_text()
    assert "Available modules" in before
    time.sleep(3.5)
    assert "dashboard http address" not in log.read_text()[len(before) :]


@pytest.mark.parametrize("name", ["start_log_monitor", "start_api_server", "start_monitor"])
def test_servants_that_are_not_started_are_there_in_this_version_of_ray(name):
    node = importlib.import_module("ray._private.node")
    before = node.Node
    with lean_node():
        assert getattr(node.Node, name) is not getattr(before, name)
    assert node.Node is before


def _commands_of_children():
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("no /proc")
    return [Path(f"/proc/{pid}/cmdline") for pid in children.read_text().split()]
