"""DP-MERF, the peer of the utility benchmark, on scikit-learn's digits."""

import numpy as np
from sklearn.datasets import load_digits

from benchmarks.utility.dp_merf import fit_and_sample
from eval.utility import train_and_test


def test_without_noise_to_speak_of_its_images_teach_a_classifier_the_digits(monkeypatch):
    # A shorter fit than the benchmark's; 8x8 pixels need a shorter length scale.
    monkeypatch.setattr("benchmarks.utility.dp_merf._STEPS", 300)
    monkeypatch.setattr("benchmarks.utility.dp_merf._FEATURES", 2000)
    monkeypatch.setattr("benchmarks.utility.dp_merf._LENGTH_SCALE", 2.0)
    digits = load_digits()
    images = (digits.images * 255 / 16).astype(np.uint8)[..., None]
    made, labels = fit_and_sample(
        images, digits.target, classes=10, epsilon=1e4, delta=1e-5, count=2000
    )
    assert made.dtype == np.uint8 and made.shape == (2000, 8, 8, 1)
    assert (np.bincount(labels) == 200).all()
    result = train_and_test(
        "logreg", made, labels, images, digits.target, classes=10, epochs=20, learning_rate=3e-3
    )
    assert result.accuracy > 0.7
