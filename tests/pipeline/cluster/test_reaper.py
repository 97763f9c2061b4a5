"""Nothing that an embedded cluster started outlives the process that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.cluster.reaper import reap, reaped

SLEEPER = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)",
]
# Starts a sleeper with a child of its own in a cluster's block, tells their ids, and waits.
DRIVER = """
import subprocess, sys, time
from pipeline.cluster.reaper import reaped
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
with reaped(sys.argv[1]):
    nested = f"import subprocess; subprocess.run({sleeper!r})"
    children = [
        subprocess.Popen(sleeper, start_new_session=True),
        subprocess.Popen([sys.executable, "-c", nested], start_new_session=True),
    ]
    print(*(child.pid for child in children), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "umbra-ray-x"
    path.mkdir()
    (path / "worker.err").write_text("what a library printed")
    return path


@pytest.fixture
def bystander():
    """A process of no cluster."""
    with subprocess.Popen(SLEEPER) as process:
        yield process
        assert process.poll() is None
        process.kill()


def _gone(pids, seconds=60.0):
    end = time.monotonic() + seconds
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != "zombie" for p in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_after_the_block_nothing_of_it_runs(folder, bystander):
    with reaped(str(folder)):
        left = subprocess.Popen(SLEEPER, start_new_session=True)
    assert left.wait(60) == -signal.SIGKILL
    assert not folder.exists()
    assert "UMBRA_CLUSTER_FOLDER" not in os.environ


def test_an_error_in_the_block_changes_nothing(folder):
    with pytest.raises(ValueError, match="of the block"), reaped(str(folder)):
        left = subprocess.Popen(SLEEPER)
        raise ValueError("of the block")
    assert left.wait(60) == -signal.SIGKILL


def test_clusters_of_others_are_left_alone(folder, tmp_path):
    with reaped(str(tmp_path / "umbra-ray-y")):
        theirs = subprocess.Popen(SLEEPER)
        reap(str(folder))
        assert theirs.poll() is None
    theirs.wait(60)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver_takes_all_along_grandchildren_and_folder(folder, bystander, how):
    command = [sys.executable, "-c", DRIVER, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    told = [int(word) for word in driver.stdout.readline().split()]
    family = [
        pid for parent in told for pid in _with_children(parent, 1 if parent == told[1] else 0)
    ]
    assert len(family) == 3
    driver.send_signal(how)
    driver.wait(60)
    assert _gone(family)
    end = time.monotonic() + 60
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not folder.exists()


def _with_children(pid, least):
    """Return a process and its children, once it has as many."""
    end = time.monotonic() + 60
    while len(children := psutil.Process(pid).children()) < least and time.monotonic() < end:
        time.sleep(0.02)
    return [pid, *(child.pid for child in children)]
