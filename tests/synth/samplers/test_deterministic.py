"""DDIM and Heun (churn without churn) against the probability-flow ODE of Gaussian data."""

from itertools import pairwise

import pytest
import torch

from synth.samplers.churn import Churn
from synth.samplers.ddim import DDIM

METHODS = {
    "ddim": lambda steps: DDIM(steps=steps),
    "heun": lambda steps: Churn(steps=steps, s_churn=0.0),
}


def at_sigma_min(oracle, sampler, x: float) -> float:
    """Where the sampler is when it reaches sigma_min: its last evaluation is there."""
    start = torch.full((1, 1, 1, 1), x, dtype=torch.float64)
    sampler.solve(oracle.denoise, start, torch.tensor([0]), torch.Generator())
    state, sigma, _ = oracle.calls[-1]
    assert sigma == 0.002
    return state.item()


@pytest.mark.parametrize(
    ("method", "intervals", "expected"),
    [
        ("ddim", 10, 0.376384),
        ("ddim", 20, 0.433775),
        ("ddim", 40, 0.465706),
        ("heun", 10, 0.587303),
        ("heun", 20, 0.519592),
        ("heun", 40, 0.504637),
    ],
)
def test_known_values(oracle, method, intervals, expected):
    """Data N(0, .25), from x = 80 at sigma = 80 over N intervals (N + 1 levels) to 0.002."""
    found = at_sigma_min(oracle(m=0.0), METHODS[method](intervals + 1), 80.0)
    assert found == pytest.approx(expected, abs=5.1e-7)


def test_the_known_values_limit_is_the_exact_flow(oracle):
    assert oracle(m=0.0).flow(80.0, 80.0, 0.002) == pytest.approx(0.499994, abs=5e-7)


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("heun", 2)])
def test_order_of_convergence(oracle, method, order):
    exact = oracle().flow(80.0, 80.0, 0.002)
    errors = [
        abs(at_sigma_min(oracle(), METHODS[method](n + 1), 80.0) - exact) for n in (160, 320, 640)
    ]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.06)


@pytest.mark.parametrize("method", list(METHODS))
def test_ends_with_the_denoised_image(oracle, method):
    """The last step is x_M = D(x_{M-1}; sigma_min)."""
    data = oracle()
    start = torch.linspace(-200, 200, 5, dtype=torch.float64).reshape(5, 1, 1, 1)
    labels = torch.zeros(5, dtype=torch.int64)
    out = METHODS[method](30).solve(data.denoise, start, labels, torch.Generator())
    state, sigma, _ = data.calls[-1]
    torch.testing.assert_close(out, data.denoise(state, sigma, labels), rtol=0, atol=1e-12)


def test_point_mass_is_hit_exactly(oracle):
    start = 80 * torch.randn((7, 1, 2, 2), dtype=torch.float64)
    for sampler in (DDIM(steps=2), Churn(steps=2, s_churn=0.0)):
        out = sampler.solve(oracle(s=0.0).denoise, start, torch.zeros(7), torch.Generator())
        torch.testing.assert_close(out, torch.full_like(out, 0.3), rtol=0, atol=1e-12)


def test_ddim_evaluates_at_the_schedules_levels(oracle, karras_levels):
    data = oracle()
    DDIM(steps=9).sample(data.denoise, torch.zeros(1), (1, 1, 1), torch.Generator())
    assert [sigma for _, sigma, _ in data.calls] == pytest.approx(karras_levels(9), rel=1e-12)


def test_gradient_flows_through_solve(oracle):
    """The sensitivity of a DDIM path in closed form: prod (1 + (b - a) a/(s^2 + a^2)) s^2/(...)."""
    data, sampler = oracle(), DDIM(steps=12)
    x = torch.full((1, 1, 1, 1), 3.0, dtype=torch.float64, requires_grad=True)
    sampler.solve(data.denoise, x, torch.tensor([0]), torch.Generator()).sum().backward()
    sigmas, expected = sampler.sigmas, 1.0
    for a, b in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        expected *= 1 + (b - a) * data.slope(a)
    assert x.grad.item() == pytest.approx(expected, rel=1e-9)
