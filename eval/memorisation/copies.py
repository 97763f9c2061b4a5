"""Nearest-neighbour copies: is a synthetic image nearer to the training set than it would be?"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval.memorisation.distances import nearest

_PARTS = 20  # enough to average over; each costs a column of M numbers
_SHARES = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Copies:
    """How near synthetic images come to the training images, beside real ones kept out.

    A larger set is nearer to everything. So the holdout is compared with disjoint parts of the
    training set of its own size (or the training set with parts of the holdout, whichever is
    smaller), and shares are averages over the parts: 0.5 is what images would give that were made
    without either set.

    Attributes:
        exact_train: synthetic images equal, pixel by pixel, to some training image; None for
            features.
        exact_holdout: the same with the holdout, as chance or blank images make them.
        closer_to_train: share of synthetic images nearer to the part of the training set than to
            that of the holdout; ties count half.
        ratio: quantiles of d_train / (d_train + d_holdout) over equal sizes, by their share: 0 is
            a copy of a training image, 1/2 as near to either, and 1/2 where both are 0.
        distance_train: quantiles of the distance to the nearest of all training images.
        distance_holdout: quantiles of the distance to the nearest of all holdout images.
        size: images on either side of the comparison.
        parts: how many disjoint parts it was averaged over.
        synthetic_count: synthetic images.
        train_count: training images.
        holdout_count: holdout images.
    """

    exact_train: int | None
    exact_holdout: int | None
    closer_to_train: float
    ratio: dict[str, float]
    distance_train: dict[str, float]
    distance_holdout: dict[str, float]
    size: int
    parts: int
    synthetic_count: int
    train_count: int
    holdout_count: int

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON types."""
        return asdict(self)


def copies(
    synthetic: np.ndarray,
    train: np.ndarray,
    holdout: np.ndarray,
    *,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Copies:
    """Compare the distances from every synthetic image to the training set and to the holdout.

    Args:
        synthetic: images uint8 [M, H, W, C] or features float [M, d].
        train: the images that the generator was trained on, or their features.
        holdout: real images of the same kind that it never saw, or their features.
        seed: of the cut into parts of equal size.
        on_progress: called with the real images compared, of `len(train) + len(holdout)`.

    Raises:
        TypeError: neither uint8 nor floats.
        ValueError: different shapes, empty, or not finite.
    """
    generator = np.random.default_rng(seed)
    d_train, all_train = _by_part(synthetic, train, len(holdout), generator, on_progress)
    d_holdout, all_holdout = _by_part(
        synthetic, holdout, len(train), generator, lambda done: on_progress(len(train) + done)
    )
    # One of the two has a single column: it is held against every part of the other.
    d_train, d_holdout = np.broadcast_arrays(d_train, d_holdout)
    total = d_train + d_holdout
    ratio = np.divide(d_train, total, out=np.full_like(total, 0.5), where=total > 0)
    images = synthetic.dtype == np.uint8
    return Copies(
        exact_train=_exact(synthetic, train) if images else None,
        exact_holdout=_exact(synthetic, holdout) if images else None,
        closer_to_train=float(np.mean((d_train < d_holdout) + 0.5 * (d_train == d_holdout))),
        ratio=_quantiles(ratio),
        distance_train=_quantiles(all_train),
        distance_holdout=_quantiles(all_holdout),
        size=min(len(train), len(holdout)),
        parts=d_train.shape[1],
        synthetic_count=len(synthetic),
        train_count=len(train),
        holdout_count=len(holdout),
    )


def _by_part(
    synthetic: np.ndarray,
    real: np.ndarray,
    size: int,
    generator: np.random.Generator,
    on_progress: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the nearest of each disjoint part of `size` images [M, parts], and of all [M].

    The first 20 parts are kept; the other images count for the second only.
    """
    size = min(size, len(real))
    order = generator.permutation(len(real))
    whole: list[np.ndarray] = []
    done = 0
    of_all = np.full(len(synthetic), np.inf)
    for part in np.split(order, range(size, len(real), size)):
        distances = nearest(synthetic, real[part])[:, 0]
        of_all = np.minimum(of_all, distances)
        if len(part) == size and len(whole) < _PARTS:
            whole.append(distances)
        done += len(part)
        on_progress(done)
    return np.stack(whole, axis=1), of_all


def _exact(synthetic: np.ndarray, real: np.ndarray) -> int:
    known = {image.tobytes() for image in real}
    return sum(image.tobytes() in known for image in synthetic)


def _quantiles(values: np.ndarray) -> dict[str, float]:
    found = np.quantile(values, _SHARES)
    return {f"{share:g}": float(value) for share, value in zip(_SHARES, found, strict=True)}
