"""Exact noise: its distribution, and that no floating-point number is near it."""

import math
from collections import Counter
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy.stats import chisquare

from privacy import noisy_counts as module
from privacy.errors import InvalidRequest
from privacy.noisy_counts import bernoulli_exp, discrete_laplace


class Below:
    """Stands in for `secrets.randbelow`: gives what a script says, and the chance of each step."""

    def __init__(self, script: list[bool], threshold) -> None:
        self.script, self.threshold = script, threshold
        self.chance = Fraction(1)

    def __call__(self, bound: int) -> int:
        assert type(bound) is int
        hit = self.script.pop(0)
        share = Fraction(self.threshold, bound)
        self.chance *= share if hit else 1 - share
        return 0 if hit else bound - 1


@pytest.mark.parametrize("gamma", [Fraction(1, 7), Fraction(1, 2), Fraction(22, 23), Fraction(1)])
def test_bernoulli_exp_has_probability_exp_minus_gamma_to_forty_digits(monkeypatch, gamma):
    """Walks every path of Algorithm 1 of up to 40 draws in exact fractions."""
    true = false = Fraction(0)
    for length in range(40):
        below = Below([True] * length + [False], gamma.numerator)
        monkeypatch.setattr(module.secrets, "randbelow", below)
        if length == 0 and gamma == 1:
            continue  # the first of its coins never fails
        if bernoulli_exp(gamma):
            true += below.chance
        else:
            false += below.chance
    with mpmath.workdps(60):
        found = mpmath.mpf(true.numerator) / true.denominator
        assert mpmath.almosteq(found, mpmath.exp(-mpmath.mpf(gamma.numerator) / gamma.denominator),
                               rel_eps=mpmath.mpf(10) ** -40)  # fmt: skip
    assert 0 <= 1 - true - false < Fraction(1, 10**40)


def test_bernoulli_exp_at_the_ends_of_its_range():
    assert all(bernoulli_exp(Fraction(0)) for _ in range(100))
    for bad in (Fraction(-1, 10**9), Fraction(10**9 + 1, 10**9)):
        with pytest.raises(InvalidRequest, match="gamma"):
            bernoulli_exp(bad)


def fits(draws: np.ndarray, scale: float) -> float:
    """p-value of Pearson's test that `draws` are discrete Laplace of `scale`."""
    reach = int(scale * 4) + 1
    cells = np.clip(draws, -reach, reach)
    a = math.exp(-1 / scale)
    k = np.arange(-reach, reach + 1)
    expected = (1 - a) / (1 + a) * a ** np.abs(k)
    expected[[0, -1]] = a**reach / (1 + a)
    counts = Counter(cells.tolist())
    found = np.array([counts[int(value)] for value in k])
    return float(chisquare(found, expected * len(draws)).pvalue)


@pytest.fixture(scope="module", params=[Fraction(1, 2), Fraction(1), Fraction(7, 3)], ids=str)
def sample(request):
    scale = request.param
    return scale, np.array([discrete_laplace(scale) for _ in range(12_000)])


def test_the_scale_is_accepted_and_its_neighbours_are_not(sample):
    """Wrong by chance in one of a million runs for each scale."""
    scale, draws = sample
    assert fits(draws, float(scale)) > 1e-6
    assert fits(draws, float(scale) * 2 / 3) < 1e-9
    assert fits(draws, float(scale) * 3 / 2) < 1e-9


def test_signs_are_even_and_zero_is_not_doubled(sample):
    scale, draws = sample
    positive, negative = int((draws > 0).sum()), int((draws < 0).sum())
    assert abs(positive - negative) < 5 * math.sqrt(positive + negative)
    a = math.exp(-1 / scale)
    p = (1 - a) / (1 + a)
    assert abs((draws == 0).mean() - p) < 5 * math.sqrt(p * (1 - p) / len(draws))


def test_tails_are_not_truncated(sample):
    scale, draws = sample
    w = math.ceil(5 * scale)
    a = math.exp(-1 / scale)
    p = 2 * a ** (w + 1) / (1 + a)
    assert abs((np.abs(draws) > w).mean() - p) < 5 * math.sqrt(p / len(draws))


@pytest.mark.parametrize("noise", [1e-300, 0.1, 3.3, 1e15])
def test_the_scale_of_any_double_is_drawn_from(noise):
    scale = Fraction(noise)
    draws = [discrete_laplace(scale) for _ in range(200)]
    assert all(type(draw) is int for draw in draws)
    # mean of |k| is at most the scale; 200 draws are within 40 % of it but once in 10^7.
    assert sum(map(abs, draws)) / 200 < 1.4 * noise + 0.2
    if noise > 1e3:
        assert sum(map(abs, draws)) / 200 > 0.6 * noise
        assert len({draw % 2**16 for draw in draws}) > 190  # down to the last bit


@pytest.mark.parametrize("bad", [0.5, 1, Fraction(0), Fraction(-1, 2), "1", None, math.nan])
def test_a_scale_that_is_not_exact_and_positive_is_refused(bad):
    with pytest.raises(InvalidRequest, match="scale"):
        discrete_laplace(bad)


def test_draws_do_not_follow_any_seed():
    import random

    def drawn() -> list[int]:
        random.seed(1)
        np.random.seed(1)
        return [discrete_laplace(Fraction(1000)) for _ in range(20)]

    assert drawn() != drawn()
