"""Stochastic samplers on Gaussian data: the law of the result is known exactly."""

import math

import pytest
import torch
from scipy import stats

from synth.samplers.churn import Churn
from synth.samplers.ddim import StochasticDDIM

SHAPE = (1, 200, 200)
CHURN = Churn(steps=12, s_churn=4.0, s_min=0.05, s_max=50.0, s_noise=1.007)
FIELDS = ("s_churn", "s_min", "s_max", "s_noise")


def draws(sampler, denoise, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sampler.sample(denoise, torch.zeros(1), SHAPE, generator).flatten()


@pytest.mark.parametrize("steps", [6, 40])
def test_stochastic_ddim_has_the_recursions_law(oracle, ddim_moments, acceptable, steps):
    data = oracle()
    x = draws(StochasticDDIM(steps=steps), data.denoise)
    mean, variance = ddim_moments(data.s, data.m, steps)
    assert acceptable(x, data.m + mean, variance)
    assert stats.kstest(x.numpy(), "norm", (data.m + mean, math.sqrt(variance))).pvalue > 1e-3


def test_other_laws_are_told_apart_from_stochastic_ddim(oracle, ddim_moments, acceptable):
    data = oracle()
    x = draws(StochasticDDIM(steps=40), data.denoise)
    mean, variance = ddim_moments(data.s, data.m, 40)
    assert not acceptable(x, data.m + mean + 0.02, variance)
    for steps, noise in ((40, 1.8), (40, 1.0), (20, 2.0)):
        _, wrong = ddim_moments(data.s, data.m, steps, noise)
        assert not acceptable(x, data.m + mean, wrong)


def test_stochastic_ddim_approaches_the_data(oracle, ddim_moments):
    data = oracle()
    errors = []
    for steps in (250, 500, 1000, 2000):
        mean, variance = ddim_moments(data.s, data.m, steps)
        errors.append(abs(variance - data.s**2))
        assert abs(mean) < 1e-2
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * data.s**2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"s_churn": 100.0},  # capped at gamma = sqrt(2) - 1
        {"s_min": 0.5, "s_max": 5.0},
        {"s_noise": 1.2},
        {"s_churn": 0.0},
        {"steps": 30},
    ],
)
def test_churn_has_the_recursions_law(oracle, churn_moments, acceptable, changes):
    data, sampler = oracle(), CHURN.model_copy(update=changes)
    x = draws(sampler, data.denoise)
    mean, variance = churn_moments(
        data.s, data.m, *(getattr(sampler, f) for f in ("steps", *FIELDS))
    )
    assert acceptable(x, data.m + mean, variance)
    assert stats.kstest(x.numpy(), "norm", (data.m + mean, math.sqrt(variance))).pvalue > 1e-3


@pytest.mark.parametrize(
    "changes",
    [{"s_churn": 0.0}, {"s_churn": 8.0}, {"s_min": 0.5}, {"s_max": 1.0}, {"s_noise": 1.05}],
)
def test_other_laws_are_told_apart_from_churn(oracle, churn_moments, acceptable, changes):
    data, wrong = oracle(), CHURN.model_copy(update=changes)
    x = draws(CHURN, data.denoise)
    mean, variance = churn_moments(
        data.s, data.m, CHURN.steps, *(getattr(wrong, f) for f in FIELDS)
    )
    assert not acceptable(x, data.m + mean, variance)


def test_churn_raises_the_level_inside_its_window_only(oracle, karras_levels):
    data, sampler = oracle(), CHURN.model_copy(update={"s_min": 0.05, "s_max": 10.0})
    draws(sampler, data.denoise)
    asked = [sigma for _, sigma, _ in data.calls[::2]]
    for level, sigma in zip(karras_levels(12), asked, strict=True):
        gamma = 4 / 12 if 0.05 <= level <= 10 else 0.0
        assert sigma == pytest.approx(level * (1 + gamma), rel=1e-12)


def test_churn_is_capped():
    assert Churn(steps=10, s_churn=100.0).gamma(1.0) == math.sqrt(2) - 1
    assert Churn(steps=1000, s_churn=100.0).gamma(1.0) == pytest.approx(0.1)


def test_churn_without_churn_draws_nothing_but_the_start(oracle):
    generator, other = (torch.Generator().manual_seed(0) for _ in "ab")
    Churn(steps=5, s_churn=0.0).sample(oracle().denoise, torch.zeros(1), (1, 2, 2), generator)
    torch.randn((1, 1, 2, 2), generator=other, dtype=torch.float64)
    assert torch.equal(generator.get_state(), other.get_state())
