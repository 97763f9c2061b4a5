"""The built-in extractor: what it computes, and that its distance grows with every fault."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.signal import correlate2d

from eval.features import GaborFeatures, extractor, gabor_kernels
from eval.frechet import Moments, feature_moments, frechet

GABOR = GaborFeatures(1)


@pytest.fixture(scope="module")
def reference(digits) -> Moments:
    return feature_moments(GABOR, digits.train_images)


def distance(reference: Moments, images: np.ndarray) -> float:
    return frechet(GABOR.metric, reference, feature_moments(GABOR, images)).distance


def rises(distances: list[float]) -> bool:
    """Whether each is above the one before, and the last far above the first."""
    return all(np.diff(distances) > 0) and distances[-1] > 5 * distances[0]


def test_distance_rises_with_blur(digits, reference):
    def blurred(width: float) -> np.ndarray:
        soft = gaussian_filter(digits.test_images.astype(float), (0, width, width, 0))
        return soft.round().astype(np.uint8)

    assert rises([distance(reference, blurred(width)) for width in (0, 0.4, 0.6, 0.8, 1.2, 2)])


def test_distance_rises_with_noise(digits, reference):
    noise = np.random.default_rng(0).normal(size=digits.test_images.shape)

    def noisy(scale: float) -> np.ndarray:
        return (digits.test_images + scale * noise).clip(0, 255).round().astype(np.uint8)

    assert rises([distance(reference, noisy(scale)) for scale in (0, 8, 16, 32, 64, 128)])


def test_distance_rises_with_class_imbalance(digits, reference):
    threes = digits.test_labels == 3

    def skewed(share: float) -> np.ndarray:
        weight = np.where(threes, share / threes.mean(), (1 - share) / (~threes).mean())
        rng = np.random.default_rng(0)
        rows = rng.choice(len(threes), len(threes), p=weight / weight.sum())
        return digits.test_images[rows]

    assert rises([distance(reference, skewed(share)) for share in (0.1, 0.25, 0.4, 0.6, 0.8)])


def test_distance_rises_with_dropped_classes(digits, reference):
    def kept(least: int) -> np.ndarray:
        return digits.test_images[digits.test_labels >= least]

    assert rises([distance(reference, kept(least)) for least in range(8)])


def test_name_and_dimension_follow_the_channels():
    assert (GABOR.name, GABOR.metric) == ("gabor", "frechet_gabor")
    for channels, dimension in ((1, 64), (2, 80), (3, 96)):
        extract = extractor("gabor", channels)
        features = extract(np.zeros((2, 8, 9, channels), np.uint8))
        assert extract.dimension == dimension
        assert features.shape == (2, dimension)
        assert features.dtype == np.float64


@pytest.mark.parametrize("shape", [(8, 8), (9, 13), (28, 28)])
def test_against_a_rewrite_with_scipy(shape):
    """One channel, cells computed by adaptive averaging over explicit slices."""

    def cells(image: np.ndarray, count: int) -> list[float]:
        def slices(side: int) -> list[slice]:
            return [slice(i * side // count, -(-(i + 1) * side // count)) for i in range(count)]

        return [image[r, c].mean() for r in slices(image.shape[0]) for c in slices(image.shape[1])]

    def halved(image: np.ndarray) -> np.ndarray:
        rows, columns = -(-image.shape[0] // 2), -(-image.shape[1] // 2)
        return np.array(
            [
                [image[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(columns)]
                for i in range(rows)
            ]
        )

    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    brightness = image / 255
    expected = cells(brightness, 4)
    kernels = gabor_kernels().numpy()[:, 0]
    for octave in range(3):
        brightness = halved(brightness) if octave else brightness
        padded = np.pad(brightness, 2, mode="edge")
        for real, imaginary in zip(kernels[:4], kernels[4:], strict=True):
            response = correlate2d(padded, real, "valid") + 1j * correlate2d(
                padded, imaginary, "valid"
            )
            expected += cells(np.abs(response), 2)
    np.testing.assert_allclose(GABOR(image[None, ..., None])[0], expected, rtol=1e-10, atol=1e-12)


def test_kernels_see_no_flat_image_and_have_unit_energy():
    real, imaginary = gabor_kernels().numpy().reshape(2, 4, 25)
    np.testing.assert_allclose(real.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(imaginary.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose((real**2 + imaginary**2).sum(axis=1), 1)
    flat = GABOR(np.full((1, 12, 12, 1), 200, np.uint8))[0]
    np.testing.assert_allclose(flat[:16], 200 / 255)
    np.testing.assert_allclose(flat[16:], 0, atol=1e-12)


def test_gratings_excite_their_own_orientation():
    stripes = np.tile(np.array([0, 128, 255], np.uint8), (12, 4))
    upright, lying = GABOR(np.stack([stripes, stripes.T])[..., None])[:, 16:32].reshape(2, 4, 4)
    assert upright.mean(axis=1).argmax() == 0
    assert lying.mean(axis=1).argmax() == 2


def test_features_do_not_depend_on_the_batch(digits):
    images = np.concatenate([digits.train_images, digits.test_images])[:1100]
    together = GABOR(images)
    for row in (0, 511, 512, 1099):
        np.testing.assert_allclose(GABOR(images[row : row + 1])[0], together[row], rtol=1e-12)


def test_colour_is_seen_apart_from_brightness():
    extract = GaborFeatures(3)
    red, blue = np.zeros((2, 1, 8, 8, 3), np.uint8)
    red[..., 0], blue[..., 2] = 90, 90
    a, b = extract(red)[0], extract(blue)[0]
    np.testing.assert_allclose(np.r_[a[:16], a[48:]], np.r_[b[:16], b[48:]])
    assert np.abs(a[16:48] - b[16:48]).max() > 0.1
    grey = extract(np.full((1, 8, 8, 3), 30, np.uint8))[0]
    np.testing.assert_allclose(grey[16:48], 0, atol=1e-12)


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match="expected 1 channels, found 3"):
        GABOR(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="at least 8x8"):
        GABOR(np.zeros((1, 7, 8, 1), np.uint8))
    with pytest.raises(TypeError, match="uint8"):
        GABOR(np.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match="at least one channel"):
        GaborFeatures(0)
    with pytest.raises(ValueError, match="gabor, inception"):
        extractor("vgg", 1)
