import os
import signal
import threading

import pytest

from pipeline.runs import status


@pytest.fixture
def run(house, blots_spec, monkeypatch):
    monkeypatch.setattr(status, "SECONDS", 0.01)
    return house.home.new_run(blots_spec())


def test_signs_of_life_come_during_the_block(run):
    assert status.seconds_since_heartbeat(run) is None
    with status.heartbeat(run):
        beat = run.path / status._BEAT
        os.utime(beat, (0, 0))
        for _ in range(1000):
            if beat.stat().st_mtime > 0:
                break
            threading.Event().wait(0.01)
        assert status.seconds_since_heartbeat(run) < status.SILENT


def test_a_request_to_stop_arrives_as_sigterm(run):
    arrived = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: arrived.set())
    try:
        status.request_stop(run)  # of an earlier process: this one does not stop
        with status.heartbeat(run):
            assert not arrived.wait(0.2)
            status.request_stop(run)
            assert arrived.wait(60)
    finally:
        signal.signal(signal.SIGTERM, before)
