"""Real images that ship with scikit-learn: 1797 digits of 8x8 pixels."""

from typing import NamedTuple

import numpy as np
import pytest
from sklearn.datasets import load_digits


class Digits(NamedTuple):
    """Two disjoint parts of the digits, shuffled."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@pytest.fixture(scope="session")
def digits() -> Digits:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    images = np.round(data.images[order] * 255 / 16).astype(np.uint8)[..., None]
    labels = data.target[order].astype(np.int64)
    return Digits(images[:900], labels[:900], images[900:], labels[900:])
