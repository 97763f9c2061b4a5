"""The shipped evaluation beside peers that do the same the plain way, results checked first."""

import numpy as np
import scipy.linalg
import torch
from scipy.ndimage import correlate
from sklearn.neighbors import NearestNeighbors
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from eval.features import (
    LAYOUT_CELLS,
    OCTAVES,
    ORIENTATIONS,
    TEXTURE_CELLS,
    GaborFeatures,
    gabor_kernels,
)
from eval.frechet import MomentAccumulator, Moments, frechet
from eval.memorisation import nearest
from eval.prdc import precision_recall
from eval.settings import NEAREST
from eval.utility import architecture, split, train_and_test

from .timing import Case
from .writing import smooth_images

Cases = tuple[list[Case], list[str]]

_SIDE = 28
_CLASSES = 10
_EPOCHS = 3
_LEARNING_RATE = 1e-3
_BATCH = 128


def feature_cases(count: int) -> Cases:
    """Return Gabor features of `count` grey images: by SciPy, filter by filter, and as shipped.

    Raises:
        AssertionError: the two are further apart than rounding takes them.
    """
    images, shipped = smooth_images(count, _SIDE, 1), GaborFeatures(1)
    _require_close("features", plain_gabor(images[:50]), shipped(images[:50]), 1e-10)
    cases = [
        Case("scipy.ndimage, a filter at a time", lambda: plain_gabor(images)),
        Case("GaborFeatures", lambda: shipped(images)),
    ]
    return cases, [f"{count} images of {_SIDE}x{_SIDE}; both in float64, equal to 1e-10."]


def distance_cases(count: int, dimension: int) -> Cases:
    """Return the Fréchet distance from `count` features a side: the formula, and as shipped.

    Raises:
        AssertionError: the two distances differ.
    """
    real, synthetic = two_sets(count, dimension)

    def formula() -> float:
        """Write Dowson and Landau's formula out, as most FID scripts do."""
        S1, S2 = np.cov(real, rowvar=False), np.cov(synthetic, rowvar=False)
        root = scipy.linalg.sqrtm(S1 @ S2).real
        shift = real.mean(axis=0) - synthetic.mean(axis=0)
        return float(shift @ shift + np.trace(S1 + S2 - 2 * root))

    def shipped() -> float:
        return frechet("bench", _moments(real), _moments(synthetic)).distance

    _require_close("distances", np.array(formula()), np.array(shipped()), 1e-8)
    cases = [Case("numpy.cov, scipy.linalg.sqrtm", formula), Case("frechet", shipped)]
    return cases, [f"{count} features of dimension {dimension} a side; equal to 1e-8."]


def prdc_cases(count: int, dimension: int) -> Cases:
    """Return precision, recall, density and coverage: whole distance matrices, and as shipped.

    Raises:
        AssertionError: one of the four numbers differs.
    """
    real, synthetic = two_sets(count, dimension)

    def shipped() -> list[float]:
        found = precision_recall(real, synthetic)
        return [found.precision, found.recall, found.density, found.coverage]

    expected = np.array(plain_prdc(real, synthetic, NEAREST))
    _require_close("precision and recall", expected, np.array(shipped()), 1e-12)
    cases = [
        Case("scikit-learn's neighbours, numpy", lambda: plain_prdc(real, synthetic, NEAREST)),
        Case("precision_recall", shipped),
    ]
    return cases, [f"{count} features of dimension {dimension} a side, k = {NEAREST}; all equal."]


def nearest_cases(count: int) -> Cases:
    """Return distances to the nearest of `count` images: by scikit-learn, and as shipped.

    Raises:
        AssertionError: a distance differs.
    """
    images = smooth_images(2 * count, _SIDE, 1)
    queries, references = images[:count], images[count:]

    def plain() -> np.ndarray:
        rows, columns = (part.reshape(count, -1) / 255 for part in (references, queries))
        index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(rows)
        return np.asarray(index.kneighbors(columns)[0])

    _require_close("distances", plain(), nearest(queries, references), 1e-6)
    cases = [
        Case("scikit-learn's NearestNeighbors", plain),
        Case("nearest", lambda: nearest(queries, references)),
    ]
    return cases, [f"{count} images beside {count} others, {_SIDE}x{_SIDE}; equal to 1e-6."]


def classifier_cases(name: str, count: int) -> Cases:
    """Return a classifier's training: a plain loop over a DataLoader, and as shipped.

    Raises:
        AssertionError: their accuracies are further apart than chance takes them.
    """
    images, labels = _two_waves(2 * count)
    train, test = (images[:count], labels[:count]), (images[count:], labels[count:])

    def shipped() -> float:
        return train_and_test(
            name,
            *train,
            *test,
            classes=_CLASSES,
            epochs=_EPOCHS,
            learning_rate=_LEARNING_RATE,
            batch_size=_BATCH,
        ).accuracy

    def plain() -> float:
        return plain_training(name, train, test)

    _require_close("accuracies", np.array(plain()), np.array(shipped()), 0.05)
    cases = [Case("plain loop over a DataLoader", plain), Case("train_and_test", shipped)]
    notes = [
        f"{count} images of {_SIDE}x{_SIDE}, {_EPOCHS} epochs, the best chosen on a tenth of them.",
        "Both from 8-bit images; accuracies on as many others within 5 points of each other.",
    ]
    return cases, notes


def plain_gabor(images: np.ndarray) -> np.ndarray:
    """Return the grey images' features [N, 64], every image filtered by itself."""
    kernels = gabor_kernels().numpy()[:, 0]
    return np.array([_gabor_of_one(image[..., 0] / 255, kernels) for image in images])


def _gabor_of_one(image: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    parts = [_cells(image, LAYOUT_CELLS)]
    for octave in range(OCTAVES):
        if octave > 0:
            side = len(image) // 2
            image = image.reshape(side, 2, side, 2).mean(axis=(1, 3))
        for real, imaginary in zip(kernels[:ORIENTATIONS], kernels[ORIENTATIONS:], strict=True):
            modulus = np.hypot(
                correlate(image, real, mode="nearest"), correlate(image, imaginary, mode="nearest")
            )
            parts.append(_cells(modulus, TEXTURE_CELLS))
    return np.concatenate(parts)


def _cells(image: np.ndarray, cells: int) -> np.ndarray:
    """Average over a grid of cells, which overlap where they do not divide the side."""
    side = len(image)
    spans = [slice(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]
    return np.array([image[rows, columns].mean() for rows in spans for columns in spans])


def plain_prdc(real: np.ndarray, synthetic: np.ndarray, k: int) -> list[float]:
    """Return precision, recall, density and coverage from whole matrices of distances."""
    # The nearest of all is the point itself.
    reach_real, reach_synthetic = (
        NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points)[0][:, -1]
        for points in (real, synthetic)
    )
    squares = (real**2).sum(1)[:, None] + (synthetic**2).sum(1) - 2 * real @ synthetic.T
    distances = np.sqrt(np.maximum(squares, 0))
    inside_real = distances < reach_real[:, None]
    return [
        float(inside_real.any(axis=0).mean()),
        float((distances < reach_synthetic).any(axis=1).mean()),
        float(inside_real.sum(axis=0).mean() / k),
        float((distances.min(axis=1) < reach_real).mean()),
    ]


def plain_training(
    name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> float:
    """Train as the usual script does, choosing the epoch on the held-out tenth; return accuracy."""
    torch.manual_seed(0)
    rows, held_out = split(len(train[0]), 0)
    model = architecture(name)(_SIDE, _SIDE, 1, _CLASSES)
    optimiser = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    loader = DataLoader(_dataset(train[0][rows], train[1][rows]), _BATCH, shuffle=True)
    best, accuracy = -1.0, 0.0
    for _ in range(_EPOCHS):
        model.train()
        for pixels, labels in loader:
            optimiser.zero_grad()
            cross_entropy(model(pixels), labels).backward()
            optimiser.step()
        reached = _accuracy(model, _dataset(train[0][held_out], train[1][held_out]))
        if reached > best:
            best, accuracy = reached, _accuracy(model, _dataset(*test))
    return accuracy


def _dataset(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return TensorDataset(pixels, torch.from_numpy(labels))


@torch.no_grad()
def _accuracy(model: torch.nn.Module, data: TensorDataset) -> float:
    model.eval()
    pixels, labels = data.tensors
    return float((model(pixels).argmax(dim=1) == labels).float().mean())


def two_sets(count: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of features [count, dimension], correlated as features are, one shifted."""
    generator = np.random.default_rng(3)
    mix = generator.normal(size=(dimension, dimension)) / np.sqrt(dimension)
    real, synthetic = generator.normal(size=(2, count, dimension)) @ mix
    return real, 0.9 * synthetic + 0.1


def _two_waves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy uint8 images [count, side, side, 1] whose frequency is their label."""
    generator = np.random.default_rng(4)
    labels = generator.integers(0, _CLASSES, count)
    axis = np.arange(_SIDE) / _SIDE
    waves = np.sin(2 * np.pi * (1 + labels[:, None] / 2) * axis)
    pixels = 127.5 + 80 * waves[:, :, None] + generator.normal(0, 25, (count, _SIDE, _SIDE))
    return pixels.clip(0, 255).astype(np.uint8)[..., None], labels


def _moments(features: np.ndarray) -> Moments:
    accumulator = MomentAccumulator(features.shape[1])
    accumulator.update(features)
    return accumulator.moments()


def _require_close(what: str, plain: np.ndarray, shipped: np.ndarray, tolerance: float) -> None:
    difference = np.abs(plain - shipped).max() / max(1.0, float(np.abs(plain).max()))
    if not difference <= tolerance:
        raise AssertionError(f"the {what} of the two ways are {difference:.1e} apart")
