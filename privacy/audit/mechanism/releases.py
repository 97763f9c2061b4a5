"""Audits of what a run releases beside its steps: noisy class means and noisy counts.

Toy records are released with hardly any noise, to see how far each of them in turn moves what comes
out, and with noise, which is held against its law and has to hide a record as well as is claimed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from privacy.accounting import accountant
from privacy.audit.distinguish import epsilon_lower_bound
from privacy.audit.mechanism import laws
from privacy.audit.mechanism.laws import Check, Law
from privacy.audit.mechanism.runs import QUIET, Start, run_workers
from privacy.collective import Collective
from privacy.mechanisms import DiscreteLaplace, Gaussian, Mechanism

CONFIDENCE = 0.999  # of every lower bound on ε; the rest is its chance of a false alarm
_STARTS = 40  # with the canary, as many without it, and as many without any record
_CLASSES, _FEW = 4, 8  # classes, and records that are not black
_SHAPE = (4, 4, 3)
_CLIP_NORM = 2.0
_NORMS = (0.99, 1.5, 3.0, 1.01)  # of images, in units of C; the last one is the canary's
# Of C: float32 rounds a mean, which is multiplied by the records of a class to read a sum.
_ROUNDING = 2e-3


@dataclass(frozen=True)
class ToyImages:
    """Toy images for class sums, of which all but a few are black, and the setting to sum them in.

    There are so many that noise of the accounted size seldom takes a mean above 1.
    """

    noise_multiplier: float  # with which they are released, QUIET or what is accounted for
    records: int  # N
    clip_norm: float = _CLIP_NORM
    classes: int = _CLASSES

    def images(self, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return uint8 [N, 4, 4, 3] and labels, records that are not `present` without effect."""
        images = np.zeros((self.records, *_SHAPE), np.uint8)
        labels = np.arange(self.records) % self.classes
        for i in present[present < _FEW]:
            images[i] = _image(_NORMS[i % len(_NORMS)] * self.clip_norm)
        # A black image adds nothing to whichever class.
        labels[np.setdiff1d(np.arange(_FEW), present)] = 0
        return images, labels

    def sums(self, means: np.ndarray) -> np.ndarray:
        """Turn class means [..., numbers] in [0, 1] into sums in units of C."""
        return means * (self.records / self.classes / self.clip_norm)


def _image(norm: float) -> np.ndarray:
    """Return bytes of nearly one value whose L2 norm, scaled to [0, 1], is `norm`."""
    size, square = math.prod(_SHAPE), (255 * norm) ** 2
    low = math.isqrt(int(square / size))
    brighter = round((square - size * low**2) / (2 * low + 1))
    flat = np.full(size, low, np.uint8)
    flat[np.arange(brighter) * size // max(brighter, 1)] += 1
    return flat.reshape(_SHAPE)


# Releases the class means of toys of which some are present, on one worker of a start: float64
# [classes, numbers], in [0, 1].
ReleaseMeans = Callable[[ToyImages, Start, Collective, np.ndarray], np.ndarray]


def audit_class_means(
    release: ReleaseMeans,
    mechanism: Gaussian,
    delta: float,
    key: Callable[[], bytes],
    workers: Sequence[int] = (1, 2),
) -> list[Check]:
    """Run a release of class means of sensitivity C and hold it against one Gaussian mechanism."""
    sigma = mechanism.noise_multiplier
    records = max(_FEW, math.ceil(8 * sigma * _CLIP_NORM * _CLASSES))
    toy, quiet = ToyImages(sigma, records), ToyImages(QUIET, records)
    everyone = np.arange(records)

    def sums(toy: ToyImages, size: int, starts: list[Start], present: np.ndarray) -> np.ndarray:
        def work(collective: Collective) -> np.ndarray:
            return np.stack([release(toy, start, collective, present) for start in starts])

        first, *others = run_workers(size, work)
        agreed.append(all(np.array_equal(first, other) for other in others))
        return toy.sums(first)

    def fresh(present: np.ndarray) -> np.ndarray:
        starts = [Start(key()) for _ in range(_STARTS // len(workers))]
        return np.concatenate([sums(toy, size, starts, present) for size in workers])

    agreed: list[bool] = []
    same = [Start(key(), seed=0)]
    moved = np.array(
        [
            sums(quiet, size, same, everyone)[0]
            - sums(quiet, size, same, np.delete(everyone, i))[0]
            for size in workers
            for i in range(_FEW)
        ]
    )
    noise, here, away = fresh(everyone[:0]), fresh(everyone), fresh(np.delete(everyone, _FEW - 1))
    canary = moved[_FEW - 1] / np.linalg.norm(moved[_FEW - 1])
    scores = [(found * canary).sum(axis=(1, 2)) for found in (here, away)]
    return [
        _moved_by_norm("warm-up: a record adds its clipped norm to its class", moved),
        Check("warm-up: workers hold the same means", all(agreed), None, "all runs"),
        laws.freshness("warm-up: noise is fresh", {1: noise}, _CLASSES),
        *laws.judge(_clamped_noise(noise / sigma)),
        hides_a_record("warm-up", scores, mechanism, delta),
    ]


def _moved_by_norm(name: str, moved: np.ndarray) -> Check:
    expected = np.array([np.linalg.norm(_image(n * _CLIP_NORM) / 255) for n in _NORMS]) / _CLIP_NORM
    expected = np.resize(np.minimum(expected, 1.0), len(moved))
    norms = np.linalg.norm(moved, axis=(1, 2))
    in_class = np.linalg.norm(moved, axis=2).max(axis=1)
    off = max(np.abs(norms - expected).max(), np.abs(norms - in_class).max())
    detail = f"records moved the sums by {norms.min():.4g} to {norms.max():.4g} of the bound"
    return Check(name, bool(off <= _ROUNDING), None, detail)


def _clamped_noise(noise: np.ndarray) -> list[Law]:
    """Test noise [starts, classes, numbers] in standard deviations, clamped to 0 from below."""
    positive = noise > 0
    size, drawn = noise.size, noise[positive]
    counts = [*positive.sum(axis=0).ravel(), positive.sum()]
    sizes = [*[len(noise)] * (size // len(noise)), size]
    signs = [laws.binomial(np.array(k), n, 0.5) for k, n in zip(counts, sizes, strict=True)]
    squares = laws.chi_squared(np.square(drawn).sum(), len(drawn))
    agree = [
        laws.binomial((one == other).sum(), one.size, 0.5)
        for axis in range(noise.ndim)
        for one, other in [_paired(np.moveaxis(positive, axis, 0))]
    ]
    shape = float(stats.kstest(drawn, "halfnorm").pvalue) if len(drawn) else 0.0
    return [
        Law("warm-up: every number is noised", np.array(signs), "half of all draws are above 0"),
        Law("warm-up: noise has the variance that is accounted for", squares, "those above 0"),
        Law("warm-up: noise is normal", np.array([shape]), "those above 0"),
        Law("warm-up: noise is independent", np.array(agree), "signs of starts, classes, numbers"),
    ]


def _paired(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    even = len(values) // 2 * 2
    return values[0:even:2], values[1:even:2]


def hides_a_record(
    name: str, scores: Sequence[np.ndarray], mechanism: Mechanism, delta: float
) -> Check:
    """Check that scores with and without a record show no more than `mechanism` claims."""
    claim = accountant("pld").epsilon([mechanism], delta)
    shown = epsilon_lower_bound(scores[0], scores[1], delta, CONFIDENCE)
    detail = f"claimed {claim:.4f}, shown at least {shown.epsilon:.4f} by {shown.trials} runs each"
    return Check(f"{name}: ε shown is within the claim", shown.epsilon <= claim, None, detail)


# Releases counts of the records that are present, of a holdout that ends with the last of them,
# under a noise multiplier: whole numbers for each step of the mechanism.
ReleaseCounts = Callable[[np.ndarray, float], list[np.ndarray]]

_EXACT = 1e-3  # a noise multiplier at which discrete Laplace noise is 0 but once in e^1000
_REMOVED = 12  # records that are removed in turn
_REACH = 40  # records for every unit of the noise's scale, so that no count need be clipped
_LARGEST_SCALE = 100.0  # the toys stay small: a mechanism of more noise is run with as much
_RUNS = 300


def audit_counts(name: str, release: ReleaseCounts, mechanism: DiscreteLaplace) -> list[Check]:
    """Run a release of counts and hold it against `mechanism`, at a sensitivity of 1 a step.

    Records are removed in turn: in each step the counts may move by 1 in all.
    """
    few = np.arange(_REMOVED)
    exact = release(few, _EXACT)
    moved = np.array(
        [
            [np.abs(there - gone).sum() for there, gone in zip(exact, without, strict=True)]
            # The last record stays, or there would be fewer of them.
            for without in (release(np.delete(few, i), _EXACT) for i in few[:-1])
        ]
    )
    scale = min(mechanism.noise_multiplier, _LARGEST_SCALE)
    many = np.arange(max(_REMOVED, math.ceil(_REACH * scale)))
    middle = np.concatenate(release(many, _EXACT))
    noise = np.stack([np.concatenate(release(many, scale)) - middle for _ in range(_RUNS)])
    steps = f"{len(exact)} steps were taken, {mechanism.steps} are charged"
    found = f"records moved a step's counts by {moved.min()} to {moved.max()}"
    return [
        Check(f"{name}: every release is charged", len(exact) <= mechanism.steps, None, steps),
        Check(f"{name}: a record moves the counts by 1", bool(moved.max() == 1), None, found),
        *laws.judge([_discrete_laplace(name, noise, scale), _uncorrelated(name, noise)]),
    ]


def _discrete_laplace(name: str, noise: np.ndarray, scale: float) -> Law:
    """Test noise [runs, counts] against P[k] = (1 - a) / (1 + a) a^|k|, a = exp(-1 / scale)."""
    p_values = [_fit(drawn, scale) for drawn in (noise.ravel(), *noise.T)]
    # By itself, for what is rounded towards zero: P[0] = (1 - a) / (1 + a).
    zeros = np.array((noise == 0).sum())
    p_values.append(float(laws.binomial(zeros, noise.size, math.tanh(0.5 / scale))))
    return Law(f"{name}: noise is of the scale that is charged", np.array(p_values), "chi-squared")


def _fit(noise: np.ndarray, scale: float) -> float:
    """Return the chi-squared p-value over bins of equal probability, or nearly."""
    edges = np.unique(np.round(stats.laplace.ppf(np.linspace(0.1, 0.9, 9), scale=scale)))
    # P[noise <= k] of whole k, from the closed form of both tails.
    below = np.where(
        edges < 0,
        np.exp((edges + 0.0) / scale) / (1 + np.exp(-1 / scale)),
        1 - np.exp(-(edges + 1) / scale) / (1 + np.exp(-1 / scale)),
    )
    expected = np.diff(np.concatenate([[0.0], below, [1.0]])) * len(noise)
    observed = np.diff(np.concatenate([[0], [(noise <= k).sum() for k in edges], [len(noise)]]))
    return float(stats.chisquare(observed, expected).pvalue)


def _uncorrelated(name: str, noise: np.ndarray) -> Law:
    """Test that the noise of a count says nothing about the next count's, or the next run's."""
    pairs = [_paired(noise), *([_paired(noise.T)] if noise.shape[1] > 1 else [])]
    p_values = [
        0.0 if np.ptp(one) == 0 else float(stats.pearsonr(one.ravel(), other.ravel()).pvalue)
        for one, other in pairs
    ]
    return Law(f"{name}: noise is independent", np.array(p_values), "of counts and of runs")
