"""What eval takes: labelled 8-bit images as arrays, checked once at the door."""

import numpy as np


def check_images(images: np.ndarray, name: str) -> None:
    """Refuses anything but uint8 images [N, H, W, C] with at least one image.

    Args:
        images: what the caller passed.
        name: what the caller calls it, for the message.

    Raises:
        TypeError: not an array of uint8.
        ValueError: not four-dimensional, or empty along some axis.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise TypeError(
            f"{name}: expected a uint8 array [N, H, W, C], found {found}; "
            "convert pixels to 0..255 first"
        )
    if images.ndim != 4:
        raise ValueError(
            f"{name}: expected four axes [N, H, W, C], found shape {images.shape}; "
            "grey images need a last axis of length 1"
        )
    if 0 in images.shape:
        raise ValueError(f"{name}: expected at least one image, found shape {images.shape}")


def check_labels(labels: np.ndarray, count: int, classes: int, name: str) -> None:
    """Refuses anything but `count` integer labels in 0..classes-1.

    Messages name the range and never a label found, which may be private.

    Raises:
        TypeError: not an array of integers.
        ValueError: wrong shape, or a label outside the range.
    """
    if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
        found = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise TypeError(f"{name}: expected an int64 array [N], found {found}")
    if labels.shape != (count,):
        raise ValueError(
            f"{name}: expected one label an image, shape ({count},), found {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{name}: expected labels in 0..{classes - 1} for {classes} classes, "
            "found some outside; check the class list"
        )


def check_features(features: np.ndarray, name: str) -> None:
    """Refuses anything but finite real features [N, d] with at least one row and column.

    Raises:
        TypeError: not an array of floats.
        ValueError: wrong shape, empty, or a value that is not finite.
    """
    if not isinstance(features, np.ndarray) or not np.issubdtype(features.dtype, np.floating):
        found = features.dtype if isinstance(features, np.ndarray) else type(features).__name__
        raise TypeError(f"{name}: expected a float array [N, d], found {found}")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"{name}: expected shape [N, d], found {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"{name}: expected finite features, found NaN or infinity")
