"""The canonical form in which mechanisms reach the libraries."""

import math

from privacy.accounting.base import MOST_NOISE, Steps, collapse, merge_gaussians
from privacy.mechanism import Gaussian, SubsampledGaussian


def test_equal_steps_are_counted_together_and_sorted():
    mechanisms = [
        Gaussian(2.0, 3),
        SubsampledGaussian(0.5, 1.0, 4),
        SubsampledGaussian(1.0, 2.0, 1),
        SubsampledGaussian(0.5, 1.0, 6),
        SubsampledGaussian(0.1, 9.0, 1),
    ]
    assert collapse(mechanisms) == [Steps(0.1, 9.0, 1), Steps(0.5, 1.0, 10), Steps(1.0, 2.0, 4)]


def test_noise_beyond_reason_is_counted_as_less():
    assert collapse([Gaussian(1e300)]) == [Steps(1.0, MOST_NOISE, 1)]


def test_gaussians_merge_by_their_precisions():
    sampled = Steps(0.5, 1.0, 10)
    merged = merge_gaussians([sampled, Steps(1.0, 2.0, 3), Steps(1.0, 5.0, 2)])
    assert merged[0] == sampled
    q, sigma, steps = merged[1]
    assert (len(merged), q, steps) == (2, 1.0, 1)
    assert math.isclose(sigma, (3 / 4 + 2 / 25) ** -0.5, rel_tol=1e-14)
    assert merge_gaussians([sampled]) == [sampled]


def test_merging_neither_overflows_nor_underflows():
    assert math.isclose(merge_gaussians([Steps(1.0, 1e-300, 1)])[0].noise_multiplier, 1e-300)
    assert math.isclose(merge_gaussians([Steps(1.0, 1e300, 1)])[0].noise_multiplier, 1e300)
