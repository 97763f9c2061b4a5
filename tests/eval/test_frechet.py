"""The Fréchet distance against closed forms and scipy's matrix root."""

import json
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.frechet import MomentAccumulator, Moments, feature_moments, frechet

PLENTY = 10**6


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    return Moments(PLENTY, np.asarray(mean, float), np.asarray(covariance, float))


def moments_of(features: np.ndarray) -> Moments:
    accumulator = MomentAccumulator(features.shape[1])
    accumulator.update(features)
    return accumulator.moments()


def distance(a: Moments, b: Moments) -> float:
    return frechet("test", a, b).distance


@pytest.mark.parametrize("dimension", [1, 5, 40])
def test_distance_equals_scipys_matrix_root(dimension):
    rng = np.random.default_rng(dimension)
    a = moments_of(rng.normal(0, 1, (200, dimension)) @ rng.normal(0, 1, (dimension, dimension)))
    b = moments_of(rng.normal(1, 2, (300, dimension)) @ rng.normal(0, 1, (dimension, dimension)))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(
        a.covariance + b.covariance - 2 * np.real(root)
    )
    result = frechet("fid", a, b)
    assert result.distance == pytest.approx(expected, rel=1e-9)
    assert result.mean_term == pytest.approx(np.sum((a.mean - b.mean) ** 2), rel=1e-12)
    assert result.distance == result.mean_term + result.covariance_term
    assert result.metric == "fid"


def test_closed_form_of_commuting_covariances():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    s, t = rng.uniform(0, 3, 12), rng.uniform(0, 3, 12)
    a = gaussian(np.zeros(12), (basis * s**2) @ basis.T)
    b = gaussian(np.full(12, 0.5), (basis * t**2) @ basis.T)
    assert distance(a, b) == pytest.approx(12 * 0.25 + np.sum((s - t) ** 2), rel=1e-12)


def test_closed_form_of_rank_one_covariances():
    """tr (S1^1/2 S2 S1^1/2)^1/2 of uu' and vv' is |u.v|; every other direction is null."""
    rng = np.random.default_rng(1)
    u, v = rng.normal(size=(2, 60))
    a, b = gaussian(np.zeros(60), np.outer(u, u)), gaussian(np.zeros(60), np.outer(v, v))
    assert distance(a, b) == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), rel=1e-12)


def test_singular_covariance_is_at_no_distance_from_itself():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(30, 10)) @ rng.normal(size=(10, 80)) * 100
    with pytest.warns(UserWarning, match="singular"):
        result = frechet("test", moments_of(features), moments_of(features))
    scale = float(np.trace(moments_of(features).covariance))
    assert 0 <= result.distance < 1e-12 * scale


def test_nearly_singular_covariance_keeps_its_digits():
    tiny = 10.0 ** -np.arange(12)
    a, b = gaussian(np.zeros(12), np.diag(tiny)), gaussian(np.zeros(12), np.diag(4 * tiny))
    assert distance(a, b) == pytest.approx(np.sum(tiny), rel=1e-12)
    zero = gaussian(np.zeros(12), np.zeros((12, 12)))
    assert distance(a, zero) == pytest.approx(np.sum(tiny), rel=1e-12)
    assert distance(zero, zero) == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 8), noise=st.sampled_from([0, 1e-9, 1]))
def test_never_negative_symmetric_and_quadratic_in_scale(seed, rank, noise):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(50, rank)) @ rng.normal(size=(rank, 8))
    y = x + noise * rng.normal(size=x.shape)
    a, b = moments_of(x), moments_of(y)
    scale = np.trace(a.covariance) + np.trace(b.covariance)
    assert distance(a, b) >= 0
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9, abs=1e-12 * scale)
    bigger = distance(moments_of(10 * x), moments_of(10 * y))
    assert bigger == pytest.approx(100 * distance(a, b), rel=1e-9, abs=1e-10 * scale)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 99), max_size=6, unique=True),
    offset=st.sampled_from([0.0, 1e3, 1e7]),
)
def test_batches_give_the_moments_of_the_whole(cuts, offset):
    features = np.random.default_rng(0).normal(size=(100, 4)) + offset
    accumulator = MomentAccumulator(4)
    for part in np.split(features, sorted(cuts)):
        accumulator.update(part)
    moments = accumulator.moments()
    assert moments.count == 100
    np.testing.assert_allclose(moments.mean, features.mean(axis=0), rtol=1e-12, atol=1e-12)
    exact = np.cov((features - offset).T)
    np.testing.assert_allclose(moments.covariance, exact, atol=1e-14 + offset * 1e-15, rtol=1e-8)


def test_float32_features_are_summed_in_float64():
    features = (np.random.default_rng(0).normal(size=(1000, 2)) + 1000).astype(np.float32)
    exact = np.cov(features.astype(np.float64).T)
    np.testing.assert_allclose(moments_of(features).covariance, exact, rtol=1e-10)


class Pixels:
    """The pixels themselves as features."""

    name = "pixels"
    metric = "frechet_pixels"
    dimension = 4

    def __call__(self, images: np.ndarray) -> np.ndarray:
        assert len(images) <= 1024
        return images.reshape(len(images), -1).astype(np.float64)


def test_feature_moments_stream_the_whole_set():
    images = np.random.default_rng(0).integers(0, 256, (2500, 2, 2, 1), dtype=np.uint8)
    moments = feature_moments(Pixels(), images)
    np.testing.assert_allclose(moments.covariance, np.cov(images.reshape(2500, 4).T), rtol=1e-12)


def test_too_few_images_are_refused_or_warned_of():
    accumulator = MomentAccumulator(3)
    with pytest.raises(ValueError, match="at least two"):
        accumulator.moments()
    accumulator.update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="found 1"):
        accumulator.moments()
    few = moments_of(np.random.default_rng(0).normal(size=(8, 8)))
    plenty = gaussian(np.zeros(8), np.eye(8))
    with pytest.warns(UserWarning, match="8 synthetic images for 8 features"):
        frechet("fid", plenty, few)
    with pytest.warns(UserWarning, match="8 real images for 8 features"):
        frechet("fid", few, plenty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet("fid", plenty, moments_of(np.random.default_rng(0).normal(size=(9, 8))))


def test_wrong_dimensions_are_refused():
    with pytest.raises(ValueError, match="dimensions 2 and 3"):
        frechet("fid", gaussian(np.zeros(2), np.eye(2)), gaussian(np.zeros(3), np.eye(3)))
    with pytest.raises(ValueError, match="expected dimension 3, found 2"):
        MomentAccumulator(3).update(np.zeros((5, 2)))
    with pytest.raises(ValueError, match="finite"):
        MomentAccumulator(1).update(np.array([[np.nan]]))


def test_result_is_json():
    a = gaussian(np.zeros(2), np.eye(2))
    record = json.loads(json.dumps(asdict(frechet("frechet_gabor", a, a))))
    assert record["metric"] == "frechet_gabor"
    assert record["real_count"] == PLENTY
    assert record["dimension"] == 2
