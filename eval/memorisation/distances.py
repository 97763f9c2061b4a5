"""Distances to the nearest images of another set, in blocks: memory does not grow with the sets."""

from collections.abc import Callable

import numpy as np
from sklearn.metrics.pairwise import euclidean_distances

from eval.arrays import check_features, check_images

_ROWS = 2048  # a block of distances: 32 MiB
_NUMBERS = 2**22  # of a block of images in float64: 32 MiB


def nearest(
    queries: np.ndarray,
    references: np.ndarray,
    count: int = 1,
    on_progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """L2 distances from every query to its `count` nearest references, smallest first.

    Distances between 8-bit images are exact: sums over whole numbers of 0..255 have no rounding
    error in float64, so a copy is at distance 0. Between features they are good to about 1e-7 of a
    vector's length.

    Args:
        queries: images uint8 [n, H, W, C], pixels counted in [0, 1], or features float [n, d].
        references: the same of another n.
        count: how many neighbours, at most as many as there are references.
        on_progress: called with the number of queries done.

    Returns:
        float64 [n, count].

    Raises:
        TypeError: neither uint8 nor floats.
        ValueError: images or features of different shapes, empty or not finite; a bad count.
    """
    _check(queries, references, count)
    scale = 255.0 if queries.dtype == np.uint8 else 1.0
    rows = _block(queries)
    found = np.empty((len(queries), count))
    for start in range(0, len(queries), rows):
        part = _vectors(queries[start : start + rows])
        best = np.full((len(part), count), np.inf)
        for first in range(0, len(references), rows):
            block = _vectors(references[first : first + rows])
            squares = euclidean_distances(part, block, squared=True)
            best = np.partition(np.hstack([best, squares]), count - 1, axis=1)[:, :count]
        found[start : start + rows] = np.sqrt(np.sort(best, axis=1)) / scale
        on_progress(start + len(part))
    return found


def _check(queries: np.ndarray, references: np.ndarray, count: int) -> None:
    for name, array in (("queries", queries), ("references", references)):
        images = isinstance(array, np.ndarray) and array.dtype == np.uint8
        (check_images if images else check_features)(array, name)
    if queries.shape[1:] != references.shape[1:]:
        raise ValueError(
            f"references: expected the shape of the queries, {queries.shape[1:]}, found "
            f"{references.shape[1:]}"
        )
    if queries.dtype != references.dtype and np.uint8 in (queries.dtype, references.dtype):
        raise TypeError("references: expected images beside images, features beside features")
    if not 1 <= count <= len(references):
        raise ValueError(f"neighbours: expected 1 to {len(references)}, found {count}")


def _block(array: np.ndarray) -> int:
    """How many rows of `array` make a block."""
    return max(1, min(_ROWS, _NUMBERS // array[0].size))


def _vectors(block: np.ndarray) -> np.ndarray:
    return block.reshape(len(block), -1).astype(np.float64)
