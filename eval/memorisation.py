"""Memorisation: synthetic images too near the training images, and what an attacker gains by them.

Nothing here proves or disproves differential privacy. A small distance may be chance, and a large
one has been shown for generators that leak; the privacy guarantee rests on the ledger alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm, rankdata
from sklearn.metrics.pairwise import euclidean_distances

from eval.arrays import check_features, check_images

CAVEAT = (
    "Distances prove nothing about differential privacy: there is no distance that passes. They "
    "show plain copies and what one simple attacker gains; the guarantee rests on the ledger."
)

# A block of distances, a block of images in float64: 32 MiB each.
_ROWS, _NUMBERS = 2048, 2**22
# Enough to average over; each costs a column of M numbers.
_PARTS = 20
_QUANTILES = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_CONFIDENCE = 0.95
_NEIGHBOURS = 5
_FALSE_POSITIVE_RATES = (0.01, 0.001)
_SPLITS = 1000


def nearest(
    queries: np.ndarray,
    references: np.ndarray,
    count: int = 1,
    on_progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Return the L2 distances from every query to its `count` nearest references, ascending.

    They are exact between 8-bit images and good to about 1e-7 of a vector's length for features.

    Args:
        queries: images uint8 [n, H, W, C], pixels counted in [0, 1], or features float [n, d].
        references: the same of another n.
        count: how many neighbours, at most as many as there are references.
        on_progress: called with the number of queries done.

    Returns:
        float64 [n, count].

    Raises:
        TypeError, ValueError: other types, different shapes, empty or not finite; a bad count.
    """
    _check(queries, references, count)
    scale = 255.0 if queries.dtype == np.uint8 else 1.0
    rows = max(1, min(_ROWS, _NUMBERS // queries[0].size))
    found = np.empty((len(queries), count))
    for start in range(0, len(queries), rows):
        part = _vectors(queries[start : start + rows])
        best = np.full((len(part), count), np.inf)
        for first in range(0, len(references), rows):
            block = _vectors(references[first : first + rows])
            # Sums over whole numbers of 0..255 have no rounding error in float64, so a copy of an
            # image is at distance 0.
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


def _vectors(block: np.ndarray) -> np.ndarray:
    return block.reshape(len(block), -1).astype(np.float64)


@dataclass(frozen=True)
class Copies:
    """Distances of synthetic images to the training images and to held-out real ones."""

    #: Synthetic images equal, pixel by pixel, to some training image; None for features.
    exact_train: int | None
    #: The same with the holdout, where only chance or blank images make them.
    exact_holdout: int | None
    #: Share of synthetic images nearer to the part of the training set than to that of the holdout,
    #: averaged over parts of equal size; ties count half. 0.5 is expected of images that were made
    #: without either set.
    closer_to_train: float
    #: Quantiles of d_train / (d_train + d_holdout) over equal sizes, by their share: 0 is a copy of
    #: a training image, 1/2 as near to either, and 1/2 where both are 0.
    ratio: dict[str, float]
    #: Quantiles of the distance to the nearest of all training images.
    distance_train: dict[str, float]
    distance_holdout: dict[str, float]
    #: Images on either side of the comparison.
    size: int
    #: How many disjoint parts it was averaged over.
    parts: int
    synthetic_count: int
    train_count: int
    holdout_count: int


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

    Raises TypeError or ValueError as `nearest` does.
    """
    # A larger set is nearer to everything. So the smaller one is compared with disjoint parts of
    # the other of its own size.
    generator = np.random.default_rng(seed)
    d_train, all_train = _by_part(synthetic, train, len(holdout), generator, on_progress)
    d_holdout, all_holdout = _by_part(
        synthetic, holdout, len(train), generator, lambda done: on_progress(len(train) + done)
    )
    # One of the two has a single column: it is compared with every part of the other.
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
    """Return distances to the nearest of each part of `size` images [M, parts], and of all [M]."""
    size = min(size, len(real))
    order = generator.permutation(len(real))
    whole: list[np.ndarray] = []
    done = 0
    of_all = np.full(len(synthetic), np.inf)
    for part in np.split(order, range(size, len(real), size)):
        distances = nearest(synthetic, real[part])[:, 0]
        of_all = np.minimum(of_all, distances)
        # The first 20 parts are kept; further images count for `of_all` only.
        if len(part) == size and len(whole) < _PARTS:
            whole.append(distances)
        done += len(part)
        on_progress(done)
    return np.stack(whole, axis=1), of_all


def _exact(synthetic: np.ndarray, real: np.ndarray) -> int:
    known = {image.tobytes() for image in real}
    return sum(image.tobytes() in known for image in synthetic)


def _quantiles(values: np.ndarray) -> dict[str, float]:
    found = np.quantile(values, _QUANTILES)
    return {f"{share:g}": float(value) for share, value in zip(_QUANTILES, found, strict=True)}


@dataclass(frozen=True)
class OperatingPoint:
    """The attack at one threshold, which is taken from the holdout."""

    #: The rate of false positives at which the threshold is set.
    rate: float
    #: Holdout images above the threshold: at most `rate` of them.
    false_positives: int
    #: Exact 95 % interval of Clopper and Pearson (1934) for their rate.
    false_positive_rate: tuple[float, float]
    #: Training images above the threshold, and their share.
    true_positives: int
    true_positive_rate: float
    #: Its exact 95 % interval, the threshold taken as given.
    interval: tuple[float, float]


@dataclass(frozen=True)
class Membership:
    """Success of membership inference by one score."""

    #: Probability that a training image scores above a holdout image; ties count half.
    auc: float
    #: Asymptotic 95 % interval of DeLong et al. (1988); of no width where every score of one kind
    #: is above all of the other.
    interval: tuple[float, float]
    #: The middle 95 % of the area under 1000 random splits of the same scores: the range expected
    #: where nothing leaks.
    null: tuple[float, float]
    #: Thresholds at 1 % and 0.1 % false positives.
    points: tuple[OperatingPoint, ...]
    train_count: int
    holdout_count: int


def membership_attacks(
    synthetic: np.ndarray,
    train: np.ndarray,
    holdout: np.ndarray,
    *,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Membership]:
    """Infer membership from the distances of real images to the synthetic ones.

    The attacker says "member" of a real image whose score is above a threshold (Hilprecht et al.
    2019; Chen et al. 2020, GAN-Leaks): minus its distance to the nearest synthetic image
    ("nearest"), or minus the mean distance to the five nearest ("density"). What counts is the true
    positive rate at a low false positive rate (Carlini et al. 2022).

    Args:
        synthetic, train, holdout: images or features, as `copies` takes them.
        seed: of the random splits.
        on_progress: called with the real images done, of `len(train) + len(holdout)`.

    Raises TypeError or ValueError as `nearest` does, and for fewer than two images in a real set.
    """
    count = min(_NEIGHBOURS, len(synthetic))
    inside = nearest(train, synthetic, count, on_progress)
    outside = nearest(holdout, synthetic, count, lambda done: on_progress(len(train) + done))
    return {
        "nearest": membership(-inside[:, 0], -outside[:, 0], seed=seed),
        "density": membership(-inside.mean(axis=1), -outside.mean(axis=1), seed=seed),
    }


def membership(train: np.ndarray, holdout: np.ndarray, *, seed: int = 0) -> Membership:
    """Evaluate membership scores, float [n] and [m], larger for likelier members.

    Raises ValueError for fewer than two scores in a set, or one that is not finite.
    """
    for name, scores in (("training", train), ("holdout", holdout)):
        if scores.ndim != 1 or len(scores) < 2 or not np.isfinite(scores).all():
            raise ValueError(f"{name} scores: expected at least two finite numbers")
    ranks = rankdata(np.concatenate([train, holdout]))
    auc, deviation = _delong(train, holdout, ranks)
    reach = float(norm.ppf((1 + _CONFIDENCE) / 2)) * deviation
    return Membership(
        auc=auc,
        interval=(max(0.0, auc - reach), min(1.0, auc + reach)),
        null=_null(ranks, len(train), seed),
        points=tuple(_operating_point(train, holdout, rate) for rate in _FALSE_POSITIVE_RATES),
        train_count=len(train),
        holdout_count=len(holdout),
    )


def _delong(train: np.ndarray, holdout: np.ndarray, ranks: np.ndarray) -> tuple[float, float]:
    """Return the area and its standard deviation by midranks (Sun and Xu 2014, eqs. 5 to 8)."""
    n, m = len(train), len(holdout)
    above_holdout = (ranks[:n] - rankdata(train)) / m
    below_train = 1 - (ranks[n:] - rankdata(holdout)) / n
    variance = np.var(above_holdout, ddof=1) / n + np.var(below_train, ddof=1) / m
    return float(above_holdout.mean()), float(np.sqrt(variance))


def _null(ranks: np.ndarray, n: int, seed: int) -> tuple[float, float]:
    generator, m = np.random.default_rng(seed), len(ranks) - n
    sums = np.array([generator.permutation(ranks)[:n].sum() for _ in range(_SPLITS)])
    areas = (sums - n * (n + 1) / 2) / (n * m)
    low, high = np.quantile(areas, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def _operating_point(train: np.ndarray, holdout: np.ndarray, rate: float) -> OperatingPoint:
    """Evaluate the lowest threshold that at most `rate` of the holdout exceeds."""
    # 0.01 * 2900 is 28.999999999999996.
    allowed = int(rate * len(holdout) + 1e-9)
    threshold = np.sort(holdout)[len(holdout) - 1 - allowed]
    alarms, found = int((holdout > threshold).sum()), int((train > threshold).sum())
    return OperatingPoint(
        rate=rate,
        false_positives=alarms,
        false_positive_rate=_exact_interval(alarms, len(holdout)),
        true_positives=found,
        true_positive_rate=found / len(train),
        interval=_exact_interval(found, len(train)),
    )


def _exact_interval(successes: int, trials: int) -> tuple[float, float]:
    interval = binomtest(successes, trials).proportion_ci(_CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)
