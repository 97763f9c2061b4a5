"""The noise that a step adds: N(0, (sigma C / (q N))^2), once, on every coordinate, always new."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from privacy.audit.distinguish import LowerBound

FALSE_ALARM = 1e-6
"""Probability, at most, that any check of an audit fails a path that is sound."""


@dataclass(frozen=True)
class Law:
    """Tests of one thing that a sound path does by chance, not judged yet.

    Attributes:
        name: of the check it will be.
        p_values: of each test, against the law on both sides; at least one.
        detail: what was tested.
    """

    name: str
    p_values: np.ndarray
    detail: str


@dataclass(frozen=True)
class Check:
    """One thing that has to be as it is claimed.

    Attributes:
        name: what it is.
        passed: whether it is so.
        p_value: chance, at most, of looking this wrong by accident; None where nothing is left
            to chance.
        detail: what was compared and found.
    """

    name: str
    passed: bool
    p_value: float | None
    detail: str


def judge(laws: list[Law]) -> list[Check]:
    """Turn laws into checks that together fail a sound path with probability `FALSE_ALARM`.

    Bonferroni's correction twice: over the tests of a law, and over the laws. A NaN fails.
    """
    checks = []
    for law in laws:
        p = float(min(np.min(law.p_values) * np.size(law.p_values), 1.0))
        checks.append(Check(law.name, bool(p >= FALSE_ALARM / len(laws)), p, law.detail))
    return checks


@dataclass(frozen=True)
class ComposedBound:
    """ε of a number of steps: claimed, and shown by telling runs apart.

    Attributes:
        steps: how many were composed.
        claim: by privacy loss distributions, an upper bound.
        lower: what the runs show.
    """

    steps: int
    claim: float
    lower: LowerBound


@dataclass(frozen=True)
class MechanismAudit:
    """The verdict on a private step.

    Attributes:
        engine: name of the gradient engine.
        sampling_probability: q.
        noise_multiplier: sigma.
        clip_norm: C.
        delta: at which claims and bounds are stated.
        records: toy records, not those of any data set.
        views: K.
        workers: how many workers took the steps, one number after the other.
        bounds: for one step, and for all steps of a start.
        checks: laws that the step has to follow.
    """

    engine: str
    sampling_probability: float
    noise_multiplier: float
    clip_norm: float
    delta: float
    records: int
    views: int
    workers: tuple[int, ...]
    bounds: tuple[ComposedBound, ...]
    checks: tuple[Check, ...]

    @property
    def broken(self) -> bool:
        """Whether a check failed or a lower bound lies above its claim."""
        above = any(bound.lower.epsilon > bound.claim for bound in self.bounds)
        return above or not all(check.passed for check in self.checks)

    def to_record(self) -> dict[str, Any]:
        """Return the audit as plain JSON values."""
        return {"broken": self.broken, **asdict(self)}


def batch_laws(masks: Mapping[int, np.ndarray], q: float) -> list[Law]:
    """Test how batches are drawn, by masks that were read off the steps' results.

    Pairs of decisions are disjoint, so that the number of pairs in which both say yes, and the
    number in which they agree, are binomial if the decisions are independent.

    Args:
        masks: number of workers to bool [starts, attempts, steps, N]; both attempts of a start
            have its key.
        q: sampling probability.
    """
    each = masks.values()
    return [
        Law(
            "records are taken with probability q",
            np.concatenate([inclusion(mask, q) for mask in each]),
            "count of every record and of all",
        ),
        Law(
            "batch sizes are binomial",
            np.array([size_variance(mask, q) for mask in each]),
            "variance against N q (1 - q)",
        ),
        Law(
            "two steps have different masks",
            np.concatenate([_apart(mask[:, :, 0], mask[:, :, 1], q) for mask in each]),
            "a record in the first and the second step",
        ),
        Law(
            "two attempts have different masks",
            np.concatenate([_apart(mask[:, 0], mask[:, 1], q) for mask in each]),
            "a record in both attempts under one key",
        ),
        Law(
            "two starts have different masks",
            np.concatenate([_apart(*_halves(mask), q) for mask in each]),
            "a record in the same step of two starts",
        ),
        Law(
            "two records have different masks",
            np.concatenate(
                [
                    _apart(*paired(mask, stride), q)
                    for size, mask in masks.items()
                    for stride in sorted({1, size})
                ]
            ),
            "records of one worker and of two in one step",
        ),
    ]


def same_for_any_workers(name: str, masks: Mapping[int, np.ndarray]) -> Check:
    """Check that the workers' parts of a batch make up the same batch, however many there are."""
    first, *others = masks.values()
    same = all(np.array_equal(first, other) for other in others)
    return Check(
        name,
        same,
        None,
        f"batches of {first[..., 0].size} steps over {', '.join(map(str, masks))} workers",
    )


def inclusion(masks: np.ndarray, q: float) -> np.ndarray:
    """Return p-values of how often records of [..., N] are taken: each, then all."""
    each = masks.reshape(-1, masks.shape[-1])
    one_by_one = _binomial(each.sum(axis=0), len(each), q)
    return np.append(one_by_one, _binomial(each.sum(), each.size, q))


def size_variance(masks: np.ndarray, q: float) -> float:
    """Return the p-value of how batch sizes vary, which shuffled batches do not.

    The sum of squared deviations from N q is compared with a chi-squared variable of the same
    mean and variance, as the fourth moment of a binomial is known.
    """
    n = masks.shape[-1]
    sizes = masks.sum(axis=-1).ravel()
    if q == 1:
        return float((sizes == n).all())
    spread = n * q * (1 - q)
    # Variance of the squared deviation over its squared mean; 2 for a normal one.
    relative = 2 + (1 - 6 * q * (1 - q)) / spread
    statistic = float(np.square(sizes - n * q).sum()) / spread * (2 / relative)
    degrees = len(sizes) * 2 / relative
    below, above = stats.chi2.cdf(statistic, degrees), stats.chi2.sf(statistic, degrees)
    return float(min(2 * min(below, above), 1.0))


def paired(masks: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Pair records that are `stride` apart: two arrays [..., pairs], no record in two pairs."""
    index = np.arange(masks.shape[-1] - stride)
    first = index[index // stride % 2 == 0]
    return masks[..., first], masks[..., first + stride]


def _halves(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    half = len(masks) // 2
    return masks[:half], masks[half : 2 * half]


def _apart(one: np.ndarray, other: np.ndarray, q: float) -> np.ndarray:
    # Shared yeses show a weak dependence best where q is small, agreement an equal stream.
    both = _binomial((one & other).sum(), one.size, q * q)
    alike = _binomial((one == other).sum(), one.size, q * q + (1 - q) * (1 - q))
    return np.array([both, alike])


def _binomial(counts: np.ndarray, size: int, probability: float) -> np.ndarray:
    """Return p-values, twice the smaller tail, of counts out of `size`."""
    below = stats.binom.cdf(counts, size, probability)
    above = stats.binom.sf(counts - 1, size, probability)
    return np.minimum(2 * np.minimum(below, above), 1.0)


def variance(name: str, noise: Mapping[int, np.ndarray]) -> Law:
    """Test that every coordinate has variance 1, and all of them together.

    Sums of squares of independent standard normals are chi-squared; both sides are tested, so
    that missing, doubled, divided and misplaced noise all show.

    Args:
        name: of the law.
        noise: number of workers to [starts, steps, coordinates], in standard deviations.
    """
    p_values = []
    for drawn in noise.values():
        squares = np.square(drawn)
        for step in range(drawn.shape[1]):
            at_step = squares[:, step]
            p_values.append(_two_sided(at_step.sum(axis=0), len(at_step)))
            p_values.append(_two_sided(at_step.sum(keepdims=True).ravel(), at_step.size))
    mean_square = np.mean(np.concatenate([np.square(d).ravel() for d in noise.values()]))
    return Law(name, np.concatenate(p_values), f"variance is {mean_square:.6g} of what it must be")


def normality(name: str, noise: Mapping[int, np.ndarray]) -> Law:
    """Test all draws together against N(0, 1) (Kolmogorov and Smirnov)."""
    p_values = np.array([stats.kstest(drawn.ravel(), "norm").pvalue for drawn in noise.values()])
    return Law(name, p_values, "idle coordinates against N(0, 1)")


def independence(name: str, noise: Mapping[int, np.ndarray], layers: int) -> Law:
    """Test that draws tell nothing about those of the next step, start, layer or coordinate.

    Pairs do not overlap, so Pearson's coefficient of each kind of pair follows its exact law.

    Args:
        name: of the law.
        noise: number of workers to [starts, steps, layers * idle].
        layers: how the coordinates are divided.
    """
    p_values = []
    for drawn in noise.values():
        cells = drawn.reshape(*drawn.shape[:2], layers, -1)
        for axis in range(cells.ndim):
            pairs = np.moveaxis(cells, axis, 0)
            even = len(pairs) // 2 * 2
            one, other = pairs[0:even:2].ravel(), pairs[1:even:2].ravel()
            # Noise that is missing has no correlation: an equal stream all the same.
            constant = np.ptp(one) == 0 or np.ptp(other) == 0
            p_values.append(0.0 if constant else float(stats.pearsonr(one, other).pvalue))
    return Law(
        name,
        np.array(p_values),
        "correlation between starts, steps, layers and neighbouring coordinates",
    )


def freshness(name: str, noise: Mapping[int, np.ndarray], layers: int) -> Check:
    """Look for the same noise twice: in two layers, steps or starts, whatever the workers."""
    rows = np.concatenate(
        [drawn.reshape(-1, drawn.shape[-1] // layers) for drawn in noise.values()]
    )
    repeated = len(rows) - len(np.unique(rows, axis=0))
    return Check(
        name,
        repeated == 0,
        None,
        f"{repeated} of {len(rows)} vectors of noise were seen before",
    )


def _two_sided(squares: np.ndarray, degrees: int) -> np.ndarray:
    below = stats.chi2.cdf(squares, degrees)
    above = stats.chi2.sf(squares, degrees)
    return np.minimum(2 * np.minimum(below, above), 1.0)
