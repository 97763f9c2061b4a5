"""Metrics as tasks of a cluster: the same numbers, whoever dies over them."""

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.cluster.evaluation import evaluate

TASK = re.compile(rb"^ray::_measure")


@pytest.fixture
def evaluated(embedded, house, blots_spec):
    """Evaluate a finished run, with something done whenever a metric is."""
    pytest.importorskip("ray")
    spec = blots_spec()
    run = house.finish(house.reserve(spec))
    return lambda on_task: evaluate(spec, run.release, run.internal / "traces", on_task)


def _at_work() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and TASK.match((entry / "cmdline").read_bytes()):
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes: from /proc")
def test_a_task_whose_worker_is_killed_is_done_again_with_the_same_result(evaluated):
    asked: list[None] = []
    undisturbed = evaluated(lambda: asked.append(None))
    assert len(asked) == 5  # two classifiers, each with its ceiling, and the features
    killed: list[int] = []

    def kill_one() -> None:
        end = time.monotonic() + 60
        while len(killed) < 2 and time.monotonic() < end:
            for pid in _at_work()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
            time.sleep(0.01)

    assert evaluated(kill_one) == undisturbed
    assert len(killed) == 2
