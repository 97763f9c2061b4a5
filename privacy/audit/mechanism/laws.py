"""The laws of a private step's batches and noise, their tests, and the verdict."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from privacy.audit.distinguish import LowerBound

# Probability, at most, that any check of an audit fails a path that is sound.
FALSE_ALARM = 1e-6


@dataclass(frozen=True)
class Law:
    """Tests of one law that a sound path follows by chance, not judged yet."""

    name: str
    p_values: np.ndarray  # of each test, against the law on both sides; at least one
    detail: str  # what was tested


@dataclass(frozen=True)
class Check:
    """One property that a sound path has, and whether it was found."""

    name: str
    passed: bool
    # Chance, at most, of looking this wrong by accident; None where nothing is left to chance.
    p_value: float | None
    detail: str  # what was compared and found


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
    """ε of a number of steps: claimed, and shown by telling runs apart."""

    steps: int  # how many were composed
    claim: float  # by privacy loss distributions, an upper bound
    lower: LowerBound  # what the runs show


@dataclass(frozen=True)
class MechanismAudit:
    """The verdict on a private step."""

    engine: str
    sampling_probability: float
    noise_multiplier: float
    clip_norm: float
    delta: float  # at which claims and bounds are stated
    records: int  # toy records, not those of any data set
    views: int  # K
    workers: tuple[int, ...]  # how many workers took the steps, one number after the other
    bounds: tuple[ComposedBound, ...]  # for one step, and for all steps of a start
    checks: tuple[Check, ...]  # laws that the step has to follow

    @property
    def broken(self) -> bool:
        """Whether a check failed or a lower bound lies above its claim."""
        above = any(bound.lower.epsilon > bound.claim for bound in self.bounds)
        return above or not all(check.passed for check in self.checks)

    def to_record(self) -> dict[str, Any]:
        """Return the audit as plain JSON values."""
        return {"broken": self.broken, **asdict(self)}


def batch_laws(
    masks: Mapping[int, np.ndarray], restarts: Mapping[int, np.ndarray], q: float
) -> list[Law]:
    """Test how batches are drawn at sampling probability q, by masks read off the steps' results.

    `masks` holds bool [starts, attempts, steps, N] by number of workers, where both attempts of a
    start have its key; `restarts` bool [starts, steps, N], where nothing may be shared. Pairs of
    decisions are disjoint, so that the number of pairs in which both say yes, and the number in
    which they agree, are binomial if the decisions are independent.
    """
    each = list(masks.values())
    half = {size: len(mask) // 2 for size, mask in restarts.items()}
    halves = [
        (mask[: half[size]], mask[half[size] : 2 * half[size]]) for size, mask in restarts.items()
    ]
    pairs = [paired(m, stride) for size, m in masks.items() for stride in sorted({1, size})]
    inclusions = np.concatenate([inclusion(mask, q) for mask in each])
    sizes = np.array([size_variance(mask, q) for mask in each])
    of_steps = _apart([(mask[:, :, 0], mask[:, :, 1]) for mask in each], q)
    of_attempts = _apart([(mask[:, 0], mask[:, 1]) for mask in each], q)
    of_starts, of_records = _apart(halves, q), _apart(pairs, q)
    return [
        Law("records are taken with probability q", inclusions, "count of every record and of all"),
        Law("batch sizes are binomial", sizes, "variance against N q (1 - q)"),
        Law("two steps have different masks", of_steps, "a record in the first and second step"),
        Law("two attempts have different masks", of_attempts, "a record in both, under one key"),
        Law("two starts have different masks", of_starts, "a record in the same step of two"),
        Law("two records have different masks", of_records, "of one worker and of two in a step"),
    ]


def same_for_any_workers(name: str, masks: Mapping[int, np.ndarray]) -> Check:
    """Check that the workers' parts of a batch make up the same batch, however many there are."""
    first, *others = masks.values()
    same = all(np.array_equal(first, other) for other in others)
    workers = ", ".join(map(str, masks))
    return Check(name, same, None, f"batches of {first[..., 0].size} steps over {workers} workers")


def inclusion(masks: np.ndarray, q: float) -> np.ndarray:
    """Return p-values of how often records of [..., N] are taken: each, then all."""
    each = masks.reshape(-1, masks.shape[-1])
    one_by_one = binomial(each.sum(axis=0), len(each), q)
    return np.append(one_by_one, binomial(each.sum(), each.size, q))


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
    return float(chi_squared(np.array(statistic), degrees))


def paired(masks: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Pair records that are `stride` apart: two arrays [..., pairs], no record in two pairs."""
    index = np.arange(masks.shape[-1] - stride)
    first = index[index // stride % 2 == 0]
    return masks[..., first], masks[..., first + stride]


def _apart(pairs: Iterable[tuple[np.ndarray, np.ndarray]], q: float) -> np.ndarray:
    p_values = []
    for one, other in pairs:
        # Shared yeses show a weak dependence best where q is small, agreement an equal stream.
        p_values.append(binomial((one & other).sum(), one.size, q * q))
        p_values.append(binomial((one == other).sum(), one.size, q * q + (1 - q) * (1 - q)))
    return np.array(p_values)


def binomial(counts: np.ndarray, size: int, probability: float) -> np.ndarray:
    """Return p-values of counts out of `size`, element by element."""
    return _two_sided(
        stats.binom.cdf(counts, size, probability), stats.binom.sf(counts - 1, size, probability)
    )


def chi_squared(squares: np.ndarray, degrees: float) -> np.ndarray:
    """Return p-values of sums of squares of `degrees` normals, element by element."""
    return _two_sided(stats.chi2.cdf(squares, degrees), stats.chi2.sf(squares, degrees))


def _two_sided(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    return np.minimum(2 * np.minimum(below, above), 1.0)


def variance(name: str, noise: Mapping[int, np.ndarray]) -> Law:
    """Test that every coordinate has variance 1, and all of them together.

    `noise` holds [starts, steps, coordinates] by number of workers, in standard deviations. Sums of
    squares of independent standard normals are chi-squared; both sides are tested, so that missing,
    doubled, divided and misplaced noise all show.
    """
    p_values = []
    for drawn in noise.values():
        squares = np.square(drawn)
        for step in range(drawn.shape[1]):
            at_step = squares[:, step]
            p_values.append(chi_squared(at_step.sum(axis=0), len(at_step)))
            p_values.append(chi_squared(at_step.sum(keepdims=True).ravel(), at_step.size))
    mean_square = np.mean(np.concatenate([np.square(d).ravel() for d in noise.values()]))
    return Law(name, np.concatenate(p_values), f"variance is {mean_square:.6g} of what it must be")


def normality(name: str, noise: Mapping[int, np.ndarray]) -> Law:
    """Test all draws together against N(0, 1) (Kolmogorov and Smirnov)."""
    p_values = np.array([stats.kstest(drawn.ravel(), "norm").pvalue for drawn in noise.values()])
    return Law(name, p_values, "idle coordinates against N(0, 1)")


def independence(name: str, noise: Mapping[int, np.ndarray], layers: int) -> Law:
    """Test that draws say nothing about those of the next step, start, layer or coordinate.

    `noise` holds [starts, steps, layers * idle] by number of workers. Pairs do not overlap, so
    Pearson's coefficient of each kind of pair follows its exact law.
    """
    p_values = []
    for drawn in noise.values():
        cells = drawn.reshape(*drawn.shape[:2], layers, -1)
        for axis in range(cells.ndim):
            pairs = np.moveaxis(cells, axis, 0)
            even = len(pairs) // 2 * 2
            one, other = pairs[0:even:2].ravel(), pairs[1:even:2].ravel()
            # Missing noise has no correlation, yet is an equal stream.
            constant = np.ptp(one) == 0 or np.ptp(other) == 0
            p_values.append(0.0 if constant else float(stats.pearsonr(one, other).pvalue))
    detail = "correlation between starts, steps, layers and neighbouring coordinates"
    return Law(name, np.array(p_values), detail)


def freshness(name: str, noise: Mapping[int, np.ndarray], layers: int) -> Check:
    """Look for the same noise twice: in two layers, steps or starts, whatever the workers."""
    rows = np.concatenate([d.reshape(-1, d.shape[-1] // layers) for d in noise.values()])
    repeated = len(rows) - len(np.unique(rows, axis=0))
    detail = f"{repeated} of {len(rows)} vectors of noise were seen before"
    return Check(name, repeated == 0, None, detail)
