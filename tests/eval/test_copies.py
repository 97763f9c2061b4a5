"""Planted copies are found; images that know neither set are as near to both."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from eval.memorisation import copies


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 5, 5, 1), dtype=np.uint8)


def test_planted_copies_are_counted():
    train, holdout, synthetic = images(90, 1), images(30, 2), images(40, 3)
    synthetic[:7] = train[20:27]
    synthetic[7:9] = holdout[3]
    found = copies(synthetic, train, holdout)
    assert (found.exact_train, found.exact_holdout) == (7, 2)
    assert found.distance_train["0"] == found.distance_holdout["0"] == 0
    assert found.distance_train["0.5"] > 0
    assert (found.size, found.parts) == (30, 3)


def test_near_copies_lower_the_ratio():
    train, holdout = images(60, 1), images(60, 2)
    synthetic = train ^ np.uint8(1)  # every pixel changed by one step
    found = copies(synthetic, train, holdout)
    assert found.exact_train == 0
    assert found.closer_to_train == 1
    assert found.ratio["1"] < 0.05
    assert found.distance_train["1"] == pytest.approx(5 / 255)


@pytest.mark.parametrize(("n", "m"), [(400, 100), (100, 400), (150, 150), (350, 100)])
def test_a_larger_set_is_no_nearer(n, m):
    found = copies(images(500, 3), images(n, 1), images(m, 2))
    assert found.closer_to_train == pytest.approx(0.5, abs=0.06)
    assert found.ratio["0.5"] == pytest.approx(0.5, abs=0.01)
    assert found.parts == max(n, m) // min(n, m)
    # The whole of the larger one is nearer, which is the error that is corrected.
    if n > m:
        assert found.distance_train["0.5"] < found.distance_holdout["0.5"]


def test_against_the_definition():
    """One image, one part at a time."""
    synthetic, train, holdout = images(20, 3), images(35, 1), images(10, 2)
    found = copies(synthetic, train, holdout, seed=5)
    order = np.random.default_rng(5).permutation(35)

    def distance(image, others):
        return min(np.linalg.norm((image.astype(float) - other) / 255) for other in others)

    nearer, ratios = [], []
    for part in (order[:10], order[10:20], order[20:30]):
        for image in synthetic:
            near, far = distance(image, train[part]), distance(image, holdout)
            nearer.append(near < far)
            ratios.append(near / (near + far))
    assert found.closer_to_train == pytest.approx(np.mean(nearer))
    assert found.ratio["0.05"] == pytest.approx(np.quantile(ratios, 0.05))
    whole = [distance(image, train) for image in synthetic]
    assert found.distance_train["0.25"] == pytest.approx(np.quantile(whole, 0.25))


def test_blank_images_are_no_evidence():
    blank = np.zeros((10, 5, 5, 1), np.uint8)
    found = copies(blank, blank, blank)
    assert (found.closer_to_train, found.ratio["0"], found.ratio["1"]) == (0.5, 0.5, 0.5)


def test_features_have_no_exact_copies_and_the_result_is_json():
    rng = np.random.default_rng(0)
    train, holdout = rng.normal(size=(30, 3)), rng.normal(size=(20, 3))
    reported = []
    found = copies(train.copy(), train, holdout, on_progress=reported.append)
    assert found.exact_train is None
    assert found.closer_to_train > 0.7  # one part of two thirds of the copied set
    assert reported == [20, 30, 50]
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["size"] == 20


def test_at_most_twenty_parts_are_kept():
    found = copies(images(5, 3), images(200, 1), images(2, 2))
    assert found.parts == 20
    whole = copies(images(5, 3), images(200, 1), images(200, 2))
    assert found.distance_train == whole.distance_train
