import os
import subprocess
import sys
import time

import pytest

from pipeline.runs import directory as process
from pipeline.runs.directory import ProcessIdentity


@pytest.fixture
def child():
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield running
    running.kill()
    running.communicate()


def identity(pid):
    return ProcessIdentity(pid, process._started(pid))


def test_this_process_lives():
    current = ProcessIdentity.current()
    assert current.pid == os.getpid()
    assert current.is_alive()
    assert current == ProcessIdentity.current()


def test_a_process_that_ended_does_not(child):
    other = identity(child.pid)
    assert other.is_alive()
    child.communicate()
    assert not other.is_alive()


def test_a_zombie_does_not(child):
    other = identity(child.pid)
    child.stdin.close()
    deadline = time.monotonic() + 20
    while other.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)  # it is not waited for, so it stays a zombie
    assert not other.is_alive()


def test_a_recycled_id_is_another_process():
    assert not ProcessIdentity(os.getpid(), "some earlier start").is_alive()


def test_an_unknown_start_is_never_alive():
    assert not ProcessIdentity(os.getpid(), "").is_alive()


def test_without_proc_ps_is_used(monkeypatch, tmp_path, child):
    monkeypatch.setattr(process, "_PROC", tmp_path)
    try:
        subprocess.run(["ps", "-o", "lstart=", "-p", "1"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("this machine has no ps")
    other = identity(child.pid)
    assert other.is_alive()
    child.communicate()
    assert not other.is_alive()


def test_a_process_of_another_machine_is_not_looked_up():
    current = ProcessIdentity.current()
    elsewhere = ProcessIdentity(current.pid, current.started, "another-host")
    assert current.is_local() and ProcessIdentity(1, "an older version noted no host").is_local()
    assert not elsewhere.is_local() and not elsewhere.is_alive()
