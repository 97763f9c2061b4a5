"""Measuring where training takes place."""

import importlib
import os

import pytest
import torch


@pytest.fixture(scope="module")
def worker():
    return importlib.import_module("tests.bench.worker")


def test_a_worker_is_another_process_whose_errors_arrive(worker):
    assert worker.in_a_worker(os.getpid) != os.getpid()
    with pytest.raises(ZeroDivisionError):
        worker.in_a_worker(_fails)


def test_a_worker_is_set_up(worker, monkeypatch):
    kept = []
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    worker._as_a_worker()
    assert kept and not torch.backends.cudnn.allow_tf32


def _fails():
    return 1 / 0
