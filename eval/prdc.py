"""Fidelity and diversity: improved precision and recall, density and coverage.

Precision and recall after Kynkaanniemi et al. 2019, density and coverage after Naeem et al. 2020,
all four by the latter's `prdc` library. The ball of an image reaches to its k-th neighbour in its
own set. Precision: share of synthetic images inside some real ball. Recall: share of real
images inside some synthetic ball. Density: real balls around a synthetic image over k, above 1
where it crowds. Coverage: share of real balls that hold a synthetic image.
"""

import contextlib
import io
from dataclasses import dataclass

import joblib
import numpy as np
from prdc import compute_prdc

from eval import arrays, settings


@dataclass(frozen=True)
class PrecisionRecallResult:
    """The four numbers, and what they were computed from."""

    #: In [0, 1], fidelity.
    precision: float
    #: In [0, 1], diversity.
    recall: float
    #: At least 0, fidelity; near 1 for two sets of one distribution.
    density: float
    #: In [0, 1], diversity.
    coverage: float
    #: The k of the k-th neighbour.
    nearest: int
    #: Images compared, after the cap.
    real_count: int
    synthetic_count: int


def precision_recall(
    real: np.ndarray,
    synthetic: np.ndarray,
    *,
    nearest: int = settings.NEAREST,
    max_images: int = settings.MAX_IMAGES,
    seed: int = 0,
) -> PrecisionRecallResult:
    """Return precision, recall, density and coverage of synthetic features against real ones.

    The four numbers depend on the size of the sets, so compare only runs with equal counts.

    Args:
        real: features [N, d] of the reference images.
        synthetic: features [M, d] of the synthetic images, by the same extractor.
        nearest: the k of the k-th neighbour.
        max_images: the most images of either set to compare; a larger set is sampled.
        seed: of the sample.

    Raises TypeError or ValueError for other arrays, different d, or too few for `nearest`.
    """
    arrays.check_features(real, "real features")
    arrays.check_features(synthetic, "synthetic features")
    if real.shape[1] != synthetic.shape[1]:
        raise ValueError(
            "synthetic features: expected the dimension of the real ones, "
            f"{real.shape[1]}, found {synthetic.shape[1]}"
        )
    if nearest < 1:
        raise ValueError(f"nearest: expected at least 1, found {nearest}")
    least = settings.fewest_compared(nearest)
    fewest = min(len(real), len(synthetic), max_images)
    if fewest < least:
        raise ValueError(
            f"precision and recall: expected at least {least} images in each set "
            f"for nearest={nearest}, found {fewest}; use more images or a smaller nearest"
        )
    generator = np.random.default_rng(seed)
    # All pairwise distances are in memory at once: about 40 * max_images^2 bytes at the peak.
    real = _sample(real, max_images, generator)
    synthetic = _sample(synthetic, max_images, generator)
    # The library prints counts, and standard output belongs to the caller. It also starts eight
    # threads, each of which would multiply matrices on all cores.
    with contextlib.redirect_stdout(io.StringIO()), joblib.parallel_config(backend="sequential"):
        found = compute_prdc(real, synthetic, nearest)
    return PrecisionRecallResult(
        **{name: float(found[name]) for name in ("precision", "recall", "density", "coverage")},
        nearest=nearest,
        real_count=len(real),
        synthetic_count=len(synthetic),
    )


def _sample(features: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    if len(features) <= size:
        return features
    return features[np.sort(generator.choice(len(features), size, replace=False))]
