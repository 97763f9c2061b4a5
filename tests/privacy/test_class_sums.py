import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from privacy import class_sums
from privacy.class_sums import class_means, noisy_class_sums
from privacy.errors import DataError, InvalidRequest
from privacy.noise import SecureGaussian

CLASSES, C, SIGMA, SEED = 3, 1.5, 2.0, 7
SHAPE = (CLASSES, 3, 2, 3)


def query(images, labels, clip_norm=C, sigma=SIGMA, noise=None):
    return noisy_class_sums(
        images,
        labels,
        CLASSES,
        clip_norm=clip_norm,
        noise_multiplier=sigma,
        noise=noise or SecureGaussian.seeded(SEED),
    )


def naive_sums(images, labels):
    sums = torch.zeros(SHAPE, dtype=torch.float64)
    for x, y in zip(images.double(), labels.tolist(), strict=True):
        norm = math.sqrt(math.fsum(v * v for v in x.flatten().tolist()))
        if math.isfinite(norm):
            sums[y] += x * min(1.0, C / norm) if norm else x
    return sums


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    images = (
        torch.rand(20, *SHAPE[1:], generator=generator)
        * torch.logspace(-1, 0.3, 20)[:, None, None, None]
    )
    return images, torch.arange(20) % CLASSES


def noiseless(images, labels):
    """The same seed draws the same noise, so it can be taken away: that is why it is void."""
    noise = SecureGaussian.seeded(SEED).gaussian(SHAPE, SIGMA * C)
    return query(images, labels) - noise


def test_sums_equal_a_naive_implementation(data, monkeypatch):
    monkeypatch.setattr(class_sums, "_CHUNK", 7)
    assert torch.allclose(noiseless(*data), naive_sums(*data), rtol=1e-9, atol=1e-12)
    norms = data[0].flatten(1).norm(dim=1)
    assert (norms < C).any()
    assert (norms > C).any()


@settings(max_examples=60)
@given(
    npst.arrays("float32", SHAPE[1:], elements=st.floats(width=32)),
    st.integers(0, CLASSES - 1),
)
def test_no_record_moves_the_release_further_than_the_clip_norm(record, label):
    images = torch.rand(5, *SHAPE[1:], generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0, 1])
    image = torch.from_numpy(record)[None]
    without = query(images, labels)
    moved = query(torch.cat([images, image]), torch.cat([labels, torch.tensor([label])])) - without
    assert moved.norm() <= C * (1 + 1e-6)
    assert not moved[[c for c in range(CLASSES) if c != label]].any()
    if not image.isfinite().all():
        assert not moved.any()


def test_records_that_are_not_finite_add_nothing(data):
    images, labels = data
    spoiled = images.clone()
    spoiled[3, 0, 0, 0], spoiled[4, 0, 1, 1], spoiled[5] = math.nan, math.inf, -math.inf
    kept = [i for i in range(20) if i not in (3, 4, 5)]
    expected = naive_sums(images[kept], labels[kept])
    assert torch.allclose(noiseless(spoiled, labels), expected, rtol=1e-9, atol=1e-12)


def test_noise_is_on_every_coordinate_of_every_class():
    images = torch.zeros(1, 1, 60, 60)
    released = query(images, torch.tensor([1]), clip_norm=0.3, sigma=5.0)
    assert released.dtype == torch.float64
    assert released.shape == (CLASSES, 1, 60, 60)
    for of_class in released:
        assert stats.kstest(of_class.flatten().numpy() / 1.5, "norm").pvalue > 1e-3
        for factor in (2 / 3, 3 / 2):
            wrong = of_class.flatten().numpy() / (1.5 * factor)
            assert stats.kstest(wrong, "norm").pvalue < 1e-9


def test_the_release_of_no_records_is_noise_alone():
    released = query(torch.zeros(0, *SHAPE[1:]), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(released, SecureGaussian.seeded(SEED).gaussian(SHAPE, SIGMA * C))


def test_images_are_not_changed(data):
    before = data[0].clone()
    query(*data)
    assert torch.equal(data[0], before)


def test_means_divide_by_the_public_number(data):
    sums = query(*data)
    assert torch.equal(class_means(sums, 6000), sums / 6000.0)


@pytest.mark.parametrize("expected", [0, -1.0, math.nan, math.inf])
def test_invalid_expected_numbers_are_refused(expected):
    with pytest.raises(InvalidRequest, match="expected number"):
        class_means(torch.zeros(SHAPE), expected)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 1, 3, 4, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 3, 4), torch.zeros(2)),
        (torch.zeros(2, 1, 3, 4), torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_wrong_shapes_and_types_are_refused(images, labels):
    with pytest.raises(InvalidRequest):
        query(images, labels)


@pytest.mark.parametrize("label", [-1, CLASSES, 91])
def test_labels_outside_the_classes_are_refused_without_naming_them(label):
    with pytest.raises(DataError) as caught:
        query(torch.zeros(1, *SHAPE[1:]), torch.tensor([label]))
    assert "91" not in str(caught.value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_impossible_parameters_are_refused(data, value):
    with pytest.raises(InvalidRequest, match="clip norm"):
        query(*data, clip_norm=value)
    with pytest.raises(InvalidRequest, match="noise multiplier"):
        query(*data, sigma=value)


@pytest.mark.parametrize("classes", [0, -1, 2.0, True])
def test_invalid_class_counts_are_refused(data, classes):
    with pytest.raises(InvalidRequest, match="number of classes"):
        noisy_class_sums(
            *data, classes, clip_norm=C, noise_multiplier=SIGMA, noise=SecureGaussian()
        )
