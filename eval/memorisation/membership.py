"""Membership inference: does an attacker who has the synthetic images know who was trained on?

The attacker scores every real image by how near the synthetic images are to it (Hilprecht et al.
2019; Chen et al. 2020, GAN-Leaks) and says "member" above a threshold. What counts is the rate of
members found at a low rate of false alarms (Carlini et al. 2022), beside the area under the curve.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm, rankdata

from eval.memorisation.distances import nearest

_CONFIDENCE = 0.95
_NEIGHBOURS = 5
_RATES = (0.01, 0.001)
_SPLITS = 1000


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold, taken from the holdout, and what it finds.

    Attributes:
        rate: the rate of false alarms that was asked for.
        false_positives: holdout images above the threshold: at most `rate` of them.
        false_positive_rate: exact 95 % interval of Clopper and Pearson (1934) for their rate.
        true_positives: training images above the threshold.
        true_positive_rate: their share.
        interval: its exact 95 % interval, the threshold taken as given.
    """

    rate: float
    false_positives: int
    false_positive_rate: tuple[float, float]
    true_positives: int
    true_positive_rate: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Membership:
    """What one score of membership is worth.

    Attributes:
        auc: probability that a training image scores above a holdout image; ties count half.
        interval: asymptotic 95 % interval of DeLong et al. (1988); of no width where every score of
            one kind is above all of the other.
        null: the middle 95 % of the area under 1000 random splits of the same scores: what there
            is to see where nothing leaks.
        points: thresholds at 1 % and 0.1 % false alarms.
        train_count: training images.
        holdout_count: holdout images.
    """

    auc: float
    interval: tuple[float, float]
    null: tuple[float, float]
    points: tuple[OperatingPoint, ...]
    train_count: int
    holdout_count: int

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON types."""
        return asdict(self)


def membership_attacks(
    synthetic: np.ndarray,
    train: np.ndarray,
    holdout: np.ndarray,
    *,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Membership]:
    """Attack with two scores: minus the distance to the nearest synthetic image ("nearest"), and
    minus the mean distance to the five nearest, a density ("density").

    Args:
        synthetic: images uint8 [M, H, W, C] or features float [M, d].
        train: the images that the generator was trained on, or their features.
        holdout: real images of the same kind that it never saw, or their features.
        seed: of the random splits.
        on_progress: called with the real images done, of `len(train) + len(holdout)`.

    Raises:
        TypeError: neither uint8 nor floats.
        ValueError: different shapes, empty, not finite, or fewer than two real images of a kind.
    """
    count = min(_NEIGHBOURS, len(synthetic))
    inside = nearest(train, synthetic, count, on_progress)
    outside = nearest(holdout, synthetic, count, lambda done: on_progress(len(train) + done))
    return {
        "nearest": membership(-inside[:, 0], -outside[:, 0], seed=seed),
        "density": membership(-inside.mean(axis=1), -outside.mean(axis=1), seed=seed),
    }


def membership(train: np.ndarray, holdout: np.ndarray, *, seed: int = 0) -> Membership:
    """Measure scores, larger for likelier members.

    Args:
        train: float [n], n at least 2.
        holdout: float [m], m at least 2.
        seed: of the random splits.

    Raises:
        ValueError: fewer than two scores of a kind, or one that is not finite.
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
        points=tuple(_operating_point(train, holdout, rate) for rate in _RATES),
        train_count=len(train),
        holdout_count=len(holdout),
    )


def _delong(train: np.ndarray, holdout: np.ndarray, ranks: np.ndarray) -> tuple[float, float]:
    """Area and its standard deviation by midranks (Sun and Xu 2014, eqs. 5 to 8)."""
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
    """The lowest threshold that at most `rate` of the holdout exceeds."""
    allowed = int(rate * len(holdout) + 1e-9)  # 0.01 * 2900 is 28.999999999999996
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
