"""Nothing that an embedded cluster started outlives the process that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cluster.reaper import reap, reaped

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")

CHILD = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
PARENT = (
    "import os, subprocess, sys; print(os.getpid(), flush=True); "
    f"subprocess.run([sys.executable, '-c', {CHILD!r}])"
)
# Starts, in a cluster's block, a process that has a child; their logs tell their ids. Then waits.
DRIVER = f"""
import subprocess, sys, time
from pipeline.cluster.reaper import reaped
with reaped(sys.argv[1]), open(sys.argv[1] + "/driver.log", "w"):
    log = open(sys.argv[1] + "/worker.out", "w")
    command = [sys.executable, "-c", {PARENT!r}]
    subprocess.Popen(command, start_new_session=True, stdout=log)
    print("started", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "umbra-ray-x"
    path.mkdir()
    (path / "worker.err").write_text("what a library printed")
    return path


@pytest.fixture
def bystander(tmp_path):
    """A process of no cluster; its log's folder has nearly the name of the cluster's."""
    other = tmp_path / "umbra-ray-xy"
    other.mkdir()
    process = _sleeper(other)
    yield process
    assert process.poll() is None
    process.kill()
    process.wait()


def _sleeper(folder):
    """Start a process that ignores SIGTERM, with a log in a folder."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    with (folder / "log.out").open("w") as log:
        return subprocess.Popen([sys.executable, "-c", code], stdout=log, start_new_session=True)


def _runs(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _becomes(condition):
    """Wait until something is so."""
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_after_the_block_only_the_driver_is_left(folder, bystander):
    with (folder / "driver.log").open("w"), reaped(str(folder)):
        left = _sleeper(folder)
    assert left.wait(60) == -signal.SIGKILL
    assert not folder.exists()


def test_an_error_in_the_block_changes_nothing(folder):
    with pytest.raises(ValueError, match="of the block"), reaped(str(folder)):
        left = _sleeper(folder)
        raise ValueError("of the block")
    assert left.wait(60) == -signal.SIGKILL


def test_the_spared_process_is_not_killed(folder):
    spared = _sleeper(folder)
    reap(str(folder), spared.pid)
    assert spared.poll() is None and not folder.exists()
    spared.kill()
    spared.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_all_processes_and_the_folder_go_when_the_driver_is_killed(folder, bystander, how):
    command = [sys.executable, "-c", DRIVER, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert driver.stdout.readline() == "started\n"
    log = folder / "worker.out"
    assert _becomes(lambda: log.read_text().count("\n") == 2)
    family = [int(pid) for pid in log.read_text().split()]
    assert all(map(_runs, family))
    driver.send_signal(how)
    driver.wait(60)
    driver.stdout.close()
    assert _becomes(lambda: not any(map(_runs, family)))
    assert _becomes(lambda: not folder.exists())
