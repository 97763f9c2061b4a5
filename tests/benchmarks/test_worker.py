"""Measuring where training takes place."""

import os

import pytest
import torch

from benchmarks import worker


def test_a_worker_is_another_process_whose_errors_arrive():
    assert worker.in_a_worker(os.getpid) != os.getpid()
    with pytest.raises(ZeroDivisionError):
        worker.in_a_worker(_fails)


def test_workers_are_a_process_each_and_all_are_asked():
    with worker.Workers(2, 1) as workers:
        first, second = workers(os.getpid), workers(os.getpid)
        assert len({*first, os.getpid()}) == 3 and first == second
        assert workers(torch.get_num_threads) == [1, 1]


def test_a_training_has_a_worker_for_each_thread_or_one_for_a_gpu(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for device, expected in (("cpu", (3, 1)), ("cuda", (1, 3))):
        with worker.Workers.of_a_training(device) as workers:
            assert (workers.count, workers.threads) == expected


def test_a_worker_is_set_up(monkeypatch):
    kept = []
    monkeypatch.setattr(worker, "tune_malloc", lambda: kept.append(True))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    worker._as_a_worker(3)
    assert kept and threads == [3] and not torch.backends.cudnn.allow_tf32


def _fails():
    return 1 / 0
