"""Precision, recall, density and coverage against a rewrite with loops."""

import json
from dataclasses import asdict

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc

from eval.prdc import precision_recall


def naive(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """The definitions of Naeem et al. 2020, one image at a time."""

    def radii(points: np.ndarray) -> list[float]:
        return [sorted(np.linalg.norm(points - p, axis=1))[k] for p in points]

    real_radii, fake_radii = radii(real), radii(fake)
    inside_real = [
        sum(np.linalg.norm(y - x) < r for x, r in zip(real, real_radii, strict=True)) for y in fake
    ]
    inside_fake = [
        any(np.linalg.norm(x - y) < r for y, r in zip(fake, fake_radii, strict=True)) for x in real
    ]
    covered = [
        any(np.linalg.norm(x - y) < r for y in fake) for x, r in zip(real, real_radii, strict=True)
    ]
    return (
        float(np.mean([count > 0 for count in inside_real])),
        float(np.mean(inside_fake)),
        float(np.mean(inside_real)) / k,
        float(np.mean(covered)),
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(8, 25), st.integers(8, 25)),
    nearest=st.integers(1, 6),
    shift=st.floats(0, 3),
)
def test_against_the_definitions(seed, sizes, nearest, shift):
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(sizes[0], 3)), rng.normal(shift, 1.5, (sizes[1], 3))
    result = precision_recall(real, fake, nearest=nearest)
    found = (result.precision, result.recall, result.density, result.coverage)
    assert found == pytest.approx(naive(real, fake, nearest))


def test_a_dropped_mode_costs_diversity_and_not_fidelity():
    rng = np.random.default_rng(0)
    modes = rng.permutation(np.repeat([0.0, 50.0], 200))[:, None]
    real = rng.normal(size=(400, 2)) + modes
    full = precision_recall(real, rng.normal(size=(400, 2)) + modes)
    dropped = precision_recall(real, rng.normal(size=(400, 2)))
    assert full.recall > 0.8
    assert full.coverage > 0.8
    assert full.density == pytest.approx(1, abs=0.3)
    assert dropped.recall < 0.55
    assert dropped.coverage <= 0.5
    assert dropped.precision > 0.8


def test_distant_sets_share_nothing():
    rng = np.random.default_rng(0)
    result = precision_recall(rng.normal(size=(50, 2)), rng.normal(100, 1, (60, 2)))
    assert (result.precision, result.recall, result.density, result.coverage) == (0, 0, 0, 0)
    assert (result.nearest, result.real_count, result.synthetic_count) == (5, 50, 60)


def test_cap_bounds_both_sets_and_is_seeded():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(300, 4)), rng.normal(0.3, 1, (400, 4))
    capped = precision_recall(real, fake, max_images=100)
    assert (capped.real_count, capped.synthetic_count) == (100, 100)
    assert capped == precision_recall(real, fake, max_images=100)
    assert capped != precision_recall(real, fake, max_images=100, seed=1)
    whole = precision_recall(real, fake)
    assert whole == precision_recall(real, fake, max_images=400, seed=1)


def test_a_sorted_set_is_sampled_and_not_cut_off():
    rng = np.random.default_rng(0)
    modes = np.repeat([0.0, 50.0], 200)[:, None]
    real, fake = rng.normal(size=(400, 2)) + modes, rng.normal(size=(400, 2)) + modes
    assert precision_recall(real, fake, max_images=200).coverage > 0.8
    assert precision_recall(real, fake[:200], max_images=200).coverage < 0.65


def test_the_library_takes_no_threads_of_its_own(monkeypatch):
    jobs = []

    def watched(*arguments):
        jobs.append(joblib.effective_n_jobs(8))
        return compute_prdc(*arguments)

    monkeypatch.setattr("eval.prdc.compute_prdc", watched)
    features = np.random.default_rng(0).normal(size=(20, 3))
    precision_recall(features, features)
    assert jobs == [1]


def test_nothing_is_printed_and_the_result_is_json(capsys):
    rng = np.random.default_rng(0)
    result = precision_recall(rng.normal(size=(20, 2)), rng.normal(size=(20, 2)))
    assert capsys.readouterr().out == ""
    record = json.loads(json.dumps(asdict(result)))
    assert set(record) == {
        "precision",
        "recall",
        "density",
        "coverage",
        "nearest",
        "real_count",
        "synthetic_count",
    }


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((6, 20), {}, "at least 7 images"),
        ((20, 6), {}, "at least 7 images"),
        ((20, 20), {"max_images": 6}, "at least 7 images"),
        ((20, 20), {"nearest": 0}, "at least 1"),
    ],
)
def test_too_few_images_are_refused(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(np.zeros((sizes[0], 2)), np.zeros((sizes[1], 2)), **options)


def test_fewest_images_are_taken():
    rng = np.random.default_rng(0)
    precision_recall(rng.normal(size=(7, 2)), rng.normal(size=(7, 2)))


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="dimension"):
        precision_recall(np.zeros((20, 2)), np.zeros((20, 3)))
