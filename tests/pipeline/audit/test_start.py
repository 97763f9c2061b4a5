"""The start that the audit runs is a worker's; tests/privacy/planted shows what it catches."""

import dataclasses

import numpy as np
import pytest

from pipeline.audit.start import WorkerStart, audit_starts
from privacy.audit.mechanism import StepPath, audit_mechanism
from privacy.audit.mechanism.audit import FEWEST_TRIALS
from privacy.audit.mechanism.releases import ToyImages
from privacy.audit.mechanism.runs import LAYERS, QUIET, Start, Toy, run_workers
from privacy.collective import SingleProcess
from privacy.dp_sgd import DPSGD
from privacy.ledger.records import Component
from privacy.mechanisms import DiscreteLaplace, Gaussian

ACCOUNTED = DPSGD(records=8, sampling_probability=1.0, noise_multiplier=1.3, clip_norm=0.7)
EVERYONE = np.arange(8)


def taken(path, start, toy=None, present=EVERYONE, steps=2):
    return path.take(toy or Toy(ACCOUNTED, 2), start, SingleProcess(), steps, present)


def test_a_record_adds_its_clipped_norm():
    """With hardly any noise, each on its own coordinate, in all three channels."""
    path, toy = WorkerStart(2, warmup=True), Toy(ACCOUNTED, 2).with_noise(QUIET)
    units = toy.in_units(taken(path, Start(path.run_key), toy))
    assert units.shape[:2] == (2, LAYERS)
    own, idle = units[..., :8], units[..., 8:]
    np.testing.assert_allclose(own, np.broadcast_to(np.minimum(toy.norms, 1), own.shape), rtol=1e-6)
    assert np.abs(idle).max() < 1e-9
    without = toy.in_units(taken(path, Start(path.run_key), toy, np.delete(EVERYONE, 3)))
    assert np.abs(without[..., 3]).max() < 1e-9


def test_unseeded_starts_of_one_run_draw_apart_and_seeded_ones_alike():
    path = WorkerStart(1, warmup=False)
    fresh = [taken(path, Start(path.run_key)) for _ in range(2)]
    assert not np.intersect1d(*fresh).size
    seeded = [taken(path, Start(path.run_key, seed=5)) for _ in range(2)]
    np.testing.assert_array_equal(*seeded)
    assert not np.intersect1d(seeded[0], taken(path, Start(path.run_key, 2, seed=5))).size


@pytest.mark.parametrize("size", [1, 2])
def test_means_are_those_of_the_classes(size):
    path, toy = WorkerStart(1, warmup=True), ToyImages(QUIET, records=8)
    start, present = Start(path.run_key), np.arange(8)
    found = run_workers(size, lambda group: path.means(toy, start, group, present))
    images, labels = toy.images(present)
    flat = images.reshape(8, -1) / 255
    clipped = flat * np.minimum(1, toy.clip_norm / np.linalg.norm(flat, axis=1))[:, None]
    expected = [clipped[labels == label].sum(axis=0) / 2 for label in range(toy.classes)]
    for means in found:
        np.testing.assert_allclose(means, expected, atol=1e-6)
    assert path.unpaid == set()


def test_an_audit_is_extended_by_all_that_is_charged(monkeypatch):
    dpsgd = dataclasses.replace(ACCOUNTED, sampling_probability=0.25)
    found = audit_mechanism(dpsgd, views=1, trials=FEWEST_TRIALS, workers=(1,), path=StepPath())
    plan = [
        Component("warmup", Gaussian(2.0)),
        Component("dp-sgd", dpsgd.mechanism(9)),
        Component("accuracy", DiscreteLaplace(2.0)),
    ]
    extended = audit_starts(found, dpsgd, 4, plan)
    assert not extended.broken
    names = [check.name for check in extended.checks]
    assert names[: len(found.checks)] == [check.name for check in found.checks]
    assert sum(name.startswith("from a worker's start: ") for name in names) == 19
    assert sum(name.startswith("warm-up: ") for name in names) == 8
    assert sum(name.startswith("accuracy: ") for name in names) == 4
