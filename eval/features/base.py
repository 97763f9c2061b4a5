"""What every feature extractor promises."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np


class FeatureExtractor(Protocol):
    """A fixed map from an image to a vector; it learns nothing from the images it is given.

    Attributes:
        name: registry name.
        metric: name of the Fréchet distance between its features: "fid" for Inception alone,
            "frechet_<name>" for any other, since numbers of different extractors do not compare.
        dimension: length d of a feature vector.
    """

    name: str
    metric: str
    dimension: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features float64 [N, d] of images uint8 [N, H, W, C], computed in batches.

        Raises:
            TypeError: images are not uint8.
            ValueError: images of a shape it cannot take.
        """
        ...


def batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive slices of at most `size` images."""
    for start in range(0, len(images), size):
        yield images[start : start + size]
