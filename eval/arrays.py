"""Checks of the arrays that `eval` takes; `name` is what a message calls an array."""

import numpy as np


def check_images(images: np.ndarray, name: str) -> None:
    """Raise TypeError or ValueError unless `images` is uint8 [N, H, W, C] with N ≥ 1."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise TypeError(
            f"{name}: expected a uint8 array [N, H, W, C], found {_kind(images)}; "
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
    """Raise TypeError or ValueError unless `labels` is `count` integers in 0..classes-1."""
    if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{name}: expected an int64 array [N], found {_kind(labels)}")
    if labels.shape != (count,):
        raise ValueError(
            f"{name}: expected one label an image, shape ({count},), found {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        # The message has the range and never a label found, which may be private.
        raise ValueError(
            f"{name}: expected labels in 0..{classes - 1} for {classes} classes, "
            "found some outside; check the class list"
        )


def check_features(features: np.ndarray, name: str) -> None:
    """Raise TypeError or ValueError unless `features` is finite floats [N, d], N ≥ 1, d ≥ 1."""
    if not isinstance(features, np.ndarray) or not np.issubdtype(features.dtype, np.floating):
        raise TypeError(f"{name}: expected a float array [N, d], found {_kind(features)}")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"{name}: expected shape [N, d], found {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"{name}: expected finite features, found NaN or infinity")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__
