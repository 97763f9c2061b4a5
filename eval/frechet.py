"""Fréchet distance between Gaussians fitted to the features of two image sets.

d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)   (Dowson and Landau 1982); in Inception
features it is FID (Heusel et al. 2017). Moments are float64 and accumulate batch by batch (Chan,
Golub and LeVeque 1979), so memory holds one batch and one covariance.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from eval.arrays import check_features, check_images
from eval.features import FeatureExtractor, batches

_BATCH = 1024


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean [d] and unbiased covariance [d, d] of `count` feature vectors, float64."""

    count: int
    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class FrechetResult:
    """A squared Fréchet distance and its terms."""

    #: "fid" or "frechet_<extractor>".
    metric: str
    #: mean_term + covariance_term, at least zero. Squared, as FID is reported.
    distance: float
    #: |m1 - m2|^2.
    mean_term: float
    #: tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2).
    covariance_term: float
    real_count: int
    synthetic_count: int
    #: Length of a feature vector. A count at or below it gives a singular covariance and a distance
    #: that is too large.
    dimension: int


class MomentAccumulator:
    """Accumulates mean and covariance of feature vectors of length `dimension` from batches."""

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._mean = np.zeros(dimension)
        self._scatter = np.zeros((dimension, dimension))

    def update(self, features: np.ndarray) -> None:
        """Add features [n, d]; raise TypeError or ValueError if they are none, or of another d."""
        check_features(features, "features")
        if features.shape[1] != len(self._mean):
            raise ValueError(
                f"features: expected dimension {len(self._mean)}, found {features.shape[1]}"
            )
        features = features.astype(np.float64)
        mean, count = features.mean(axis=0), len(features)
        centred, shift = features - mean, mean - self._mean
        total = self.count + count
        self._scatter += centred.T @ centred
        self._scatter += np.outer(shift, shift) * (self.count * count / total)
        self._mean += shift * (count / total)
        self.count = total

    def moments(self) -> Moments:
        """Return the moments of everything added; raise ValueError for fewer than two vectors."""
        # One vector has no covariance.
        if self.count < 2:
            raise ValueError(f"moments: expected at least two images, found {self.count}")
        return Moments(self.count, self._mean.copy(), self._scatter / (self.count - 1))


def feature_moments(extract: FeatureExtractor, images: np.ndarray) -> Moments:
    """Return the moments of the features of two or more images uint8 [N, H, W, C], by batches."""
    check_images(images, "images")
    accumulator = MomentAccumulator(extract.dimension)
    for part in batches(images, _BATCH):
        accumulator.update(extract(part))
    return accumulator.moments()


def frechet(metric: str, real: Moments, synthetic: Moments) -> FrechetResult:
    """Return the squared Fréchet distance between two sets of features.

    Warns (UserWarning) where a set has no more images than features have dimensions: its covariance
    is singular, and the distance is biased upward and not comparable with larger sets.

    Args:
        metric: name to report it under, an extractor's `metric`.
        real: moments of the reference set.
        synthetic: moments of the synthetic set.

    Raises:
        ValueError: the two have different dimensions.
    """
    if real.mean.shape != synthetic.mean.shape:
        raise ValueError(
            "moments: expected features of one extractor, found dimensions "
            f"{len(real.mean)} and {len(synthetic.mean)}"
        )
    dimension = len(real.mean)
    for name, count in (("real", real.count), ("synthetic", synthetic.count)):
        if count <= dimension:
            warnings.warn(
                f"{metric}: {count} {name} images for {dimension} features make a singular "
                f"covariance, and the distance comes out too large; use more than {dimension}",
                stacklevel=2,
            )
    mean_term = float(np.sum((real.mean - synthetic.mean) ** 2))
    covariance_term = _covariance_term(real.covariance, synthetic.covariance)
    return FrechetResult(
        metric=metric,
        distance=mean_term + covariance_term,
        mean_term=mean_term,
        covariance_term=covariance_term,
        real_count=real.count,
        synthetic_count=synthetic.count,
        dimension=dimension,
    )


def _covariance_term(S1: np.ndarray, S2: np.ndarray) -> float:
    """Return tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), at least zero."""
    # The eigenvalues of S1^1/2 S2 S1^1/2 are the squared singular values of S1^1/2 S2^1/2. Singular
    # values are taken, because the root of a computed eigenvalue turns a rounding error of 1e-16
    # into 1e-8, once for every null direction of a singular covariance.
    cross = np.linalg.svd(_root(S1) @ _root(S2), compute_uv=False).sum()
    return max(0.0, float(np.trace(S1) + np.trace(S2) - 2 * cross))


def _root(S: np.ndarray) -> np.ndarray:
    """Return the symmetric root of a positive semi-definite matrix, null directions kept null."""
    eigenvalues, vectors = np.linalg.eigh((S + S.T) / 2)
    rounding = len(S) * np.finfo(np.float64).eps * max(float(eigenvalues[-1]), 0.0)
    eigenvalues = np.where(eigenvalues > rounding, eigenvalues, 0.0)
    return (vectors * np.sqrt(eigenvalues)) @ vectors.T
