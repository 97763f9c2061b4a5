"""The attack: calibrated where nothing leaks, and seen where something does."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.metrics import roc_auc_score, roc_curve

from eval import memorisation
from eval.memorisation import membership, membership_attacks


def naive_area(train, holdout):
    """The definition of the area and of DeLong's variance, one pair at a time."""
    pairs = np.array([[(x > y) + 0.5 * (x == y) for y in holdout] for x in train])
    by_train, by_holdout = pairs.mean(axis=1), pairs.mean(axis=0)
    variance = by_train.var(ddof=1) / len(train) + by_holdout.var(ddof=1) / len(holdout)
    return pairs.mean(), variance


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(2, 25), st.integers(2, 25)),
    levels=st.integers(2, 30),
)
def test_the_area_is_that_of_all_pairs(seed, sizes, levels):
    rng = np.random.default_rng(seed)
    train, holdout = (rng.integers(0, levels, n).astype(float) for n in sizes)  # with ties
    found = membership(train, holdout)
    area, variance = naive_area(train, holdout)
    assert found.auc == pytest.approx(area)
    truth = [1] * len(train) + [0] * len(holdout)
    assert found.auc == pytest.approx(roc_auc_score(truth, np.concatenate([train, holdout])))
    reach = 1.959964 * np.sqrt(variance)
    assert found.interval == pytest.approx((max(0, area - reach), min(1, area + reach)), abs=1e-6)


def test_the_interval_covers_and_the_null_is_right(monkeypatch):
    """Scores without a difference: 0.5 is in the interval, the area in the null, 19 times of 20."""
    monkeypatch.setattr(memorisation, "_SPLITS", 200)
    rng = np.random.default_rng(0)
    inside = within = 0
    for seed in range(200):
        found = membership(rng.normal(size=60), rng.normal(size=40), seed=seed)
        inside += found.interval[0] <= 0.5 <= found.interval[1]
        within += found.null[0] <= found.auc <= found.null[1]
    assert 0.9 <= inside / 200 <= 0.985
    assert 0.9 <= within / 200 <= 0.985


def test_the_interval_is_about_the_true_area(monkeypatch):
    """Normal scores a shift apart: the area is known, and an interval about 0.5 would miss it."""
    monkeypatch.setattr(memorisation, "_SPLITS", 1)  # of no influence on the interval
    rng = np.random.default_rng(1)
    true = 0.7602  # Phi(1 / sqrt 2)
    covered = sum(
        found.interval[0] <= true <= found.interval[1]
        for found in (membership(rng.normal(1, 1, 80), rng.normal(size=80)) for _ in range(100))
    )
    assert covered >= 88


def test_the_points_of_the_curve():
    rng = np.random.default_rng(2)
    train, holdout = rng.normal(1.5, 1, 700), rng.normal(size=2900)
    truth = [1] * 700 + [0] * 2900
    rates, found, _ = roc_curve(truth, np.concatenate([train, holdout]), drop_intermediate=False)
    for point in membership(train, holdout).points:
        best = found[rates <= point.rate + 1e-12].max()
        assert point.true_positive_rate == pytest.approx(best)
        assert point.false_positives == {0.01: 29, 0.001: 2}[point.rate]
        k, n = point.true_positives, 700
        assert point.interval[0] == pytest.approx(beta.ppf(0.025, k, n - k + 1))
        assert point.interval[1] == pytest.approx(beta.ppf(0.975, k + 1, n - k))
        low, high = point.false_positive_rate
        assert low < point.rate < high
    assert [p.rate for p in membership(train, holdout).points] == [0.01, 0.001]


def test_ties_raise_no_alarms():
    """A threshold that half of the holdout equals would be passed by all of them."""
    for point in membership(np.ones(50), np.ones(50)).points:
        assert (point.false_positives, point.true_positives) == (0, 0)


def test_few_holdout_images_say_little_about_a_low_rate():
    found = membership(np.arange(50.0) + 100, np.arange(50.0))
    point = found.points[1]
    assert (point.false_positives, point.true_positive_rate) == (0, 1)
    assert point.false_positive_rate[1] == pytest.approx(1 - 0.025 ** (1 / 50))  # 7 %, not 0.1 %


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 5, 5, 1), dtype=np.uint8)


def test_a_generator_that_copies_is_found():
    train, holdout, synthetic = images(200, 1), images(150, 2), images(300, 3)
    synthetic[:100] = train[:100]
    for name, found in membership_attacks(synthetic, train, holdout).items():
        assert found.interval[0] > found.null[1], name
        assert found.auc > 0.6
    found = membership_attacks(synthetic, train, holdout)["nearest"]
    assert found.points[0].interval[0] > 0.3  # half of the members, and hardly a false alarm


def test_images_that_know_neither_set_give_nothing_away():
    reported = []
    found = membership_attacks(
        images(300, 3), images(200, 1), images(150, 2), on_progress=reported.append
    )
    for measured in found.values():
        assert measured.interval[0] <= 0.5 <= measured.interval[1]
        assert measured.null[0] <= measured.auc <= measured.null[1]
    assert reported == [200, 350]
    record = {name: asdict(measured) for name, measured in found.items()}
    assert json.loads(json.dumps(record, allow_nan=False))["nearest"]["train_count"] == 200


def test_density_sees_a_crowd_that_the_nearest_does_not():
    """Every real image has a synthetic one as near; about the members there are five."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(100, 8)) * 10
    directions = rng.normal(size=(100, 8))
    beside = places + directions / np.linalg.norm(directions, axis=1, keepdims=True)
    synthetic = np.concatenate([beside, *[beside[:50] + rng.normal(0, 0.01, (50, 8))] * 4])
    found = membership_attacks(synthetic, places[:50], places[50:])
    assert found["density"].auc > 0.9
    assert found["nearest"].auc < 0.75


@pytest.mark.parametrize(
    ("train", "holdout"),
    [([1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0]), ([1.0, np.nan], [1.0, 2.0])],
)
def test_too_few_or_infinite_scores_are_refused(train, holdout):
    with pytest.raises(ValueError, match="at least two finite"):
        membership(np.array(train), np.array(holdout))


def test_one_synthetic_image_is_enough():
    found = membership_attacks(images(1, 3), images(10, 1), images(10, 2))
    assert found["nearest"] == found["density"]
