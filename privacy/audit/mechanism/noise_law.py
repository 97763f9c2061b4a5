"""The noise that a step adds: N(0, (sigma C / (q N))^2), once, on every coordinate, always new."""

from collections.abc import Mapping

import numpy as np
from scipy import stats

from privacy.audit.mechanism.results import Check, Law


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
