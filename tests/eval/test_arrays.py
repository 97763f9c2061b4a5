"""The checks of arrays, and that their messages contain no private value."""

import numpy as np
import pytest

from eval.arrays import check_features, check_images, check_labels


def test_valid_arrays_are_accepted():
    check_images(np.zeros((1, 1, 1, 1), np.uint8), "images")
    check_labels(np.array([0, 2, 1]), 3, 3, "labels")
    check_labels(np.array([0, 2], np.int32), 2, 3, "labels")
    check_features(np.zeros((1, 1), np.float32), "features")


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((2, 4, 4, 1), np.float32), TypeError, "uint8"),
        ([[1]], TypeError, "list"),
        (np.zeros((2, 4, 4), np.uint8), ValueError, "last axis of length 1"),
        (np.zeros((0, 4, 4, 1), np.uint8), ValueError, "at least one image"),
        (np.zeros((2, 4, 4, 0), np.uint8), ValueError, "at least one image"),
    ],
)
def test_bad_images_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        check_images(images, "training images")


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.zeros(3), TypeError, "int64"),
        (np.zeros(3, bool), TypeError, "int64"),
        (np.zeros((3, 1), np.int64), ValueError, "one label an image"),
        (np.zeros(2, np.int64), ValueError, "one label an image"),
        (np.array([0, 1, 77]), ValueError, "0..2"),
        (np.array([0, -77, 1]), ValueError, "0..2"),
    ],
)
def test_bad_labels_are_refused_without_being_quoted(labels, error, message):
    with pytest.raises(error, match=message) as caught:
        check_labels(labels, 3, 3, "labels")
    assert "77" not in str(caught.value)


@pytest.mark.parametrize(
    ("features", "error"),
    [
        (np.zeros((2, 2), np.int64), TypeError),
        (np.zeros(2), ValueError),
        (np.zeros((2, 0)), ValueError),
        (np.array([[0.0, np.nan]]), ValueError),
        (np.array([[0.0, np.inf]]), ValueError),
    ],
)
def test_bad_features_are_refused(features, error):
    with pytest.raises(error):
        check_features(features, "features")
