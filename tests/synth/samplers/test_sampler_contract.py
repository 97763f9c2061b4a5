"""The contract of every sampler in the registry; a new one is tested by being registered."""

import math

import pytest
import torch
from pydantic import ValidationError

from privacy.errors import InvalidRequest
from synth.samplers import SAMPLERS, sampler
from synth.samplers.base import karras
from synth.samplers.churn import Churn
from synth.samplers.ddim import DDIM, StochasticDDIM

every = pytest.mark.parametrize("name", list(SAMPLERS))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every
def test_nfe_is_the_number_of_calls(oracle, name):
    for steps in (2, 3, 17):
        data, method = oracle(), sampler(name, steps=steps)
        method.sample(data.denoise, torch.zeros(2), (1, 2, 2), generator())
        assert len(data.calls) == method.nfe


def test_nfe_is_that_of_the_paper():
    assert DDIM().nfe == 50
    assert StochasticDDIM(steps=1000).nfe == 1000
    assert Churn(steps=1000).nfe == 1999


@every
def test_result_depends_on_the_generator_only(oracle, name):
    method, labels = sampler(name, steps=5), torch.zeros(3)
    torch.manual_seed(1)
    first = method.sample(oracle().denoise, labels, (2, 3, 4), generator(7))
    torch.manual_seed(2)
    second = method.sample(oracle().denoise, labels, (2, 3, 4), generator(7))
    other = method.sample(oracle().denoise, labels, (2, 3, 4), generator(8))
    assert first.shape == (3, 2, 3, 4)
    assert first.dtype == torch.float64
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@every
def test_label_is_honoured(name):
    """Each class is another point mass, and every image arrives at its own."""

    def denoise(x, sigma, labels):
        return (0.1 * labels.double())[:, None, None, None].expand_as(x)

    labels = torch.tensor([3, 0, 9, 3])
    out = sampler(name, steps=30).sample(denoise, labels, (1, 2, 2), generator())
    expected = (0.1 * labels.double())[:, None, None, None].expand_as(out)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)


@every
def test_denoise_gets_a_python_float_and_a_float64_state(oracle, name):
    data = oracle()
    sampler(name, steps=4).sample(data.denoise, torch.zeros(2), (1, 1, 1), generator())
    for x, sigma, _ in data.calls:
        assert x.dtype == torch.float64
        assert type(sigma) is float
        assert sigma > 0


@every
def test_start_is_not_written_to(oracle, name):
    x = torch.ones((1, 1, 2, 2), dtype=torch.float64)
    sampler(name, steps=4).solve(oracle().denoise, x, torch.zeros(1), generator())
    assert torch.equal(x, torch.ones_like(x))


@every
def test_sample_keeps_no_graph(name):
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    out = sampler(name, steps=4).sample(
        lambda x, sigma, labels: weight * x, torch.zeros(1), (1, 1, 1), generator()
    )
    assert not out.requires_grad


@every
def test_no_labels_give_no_images(oracle, name):
    out = sampler(name, steps=4).sample(oracle().denoise, torch.zeros(0), (1, 2, 2), generator())
    assert out.shape == (0, 1, 2, 2)


@every
def test_samplers_are_frozen_values(name):
    method = sampler(name)
    assert method == sampler(name)
    assert hash(method) == hash(sampler(name))
    assert method.name == name
    with pytest.raises(ValidationError, match="frozen"):
        method.steps = 3


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 1},
        {"steps": 10.0},
        {"steps": True},
        {"sigma_min": 0.0},
        {"sigma_min": math.nan},
        {"sigma_min": 90.0},
        {"sigma_max": math.inf},
        {"rho": 0.0},
        {"rho": math.nan},
    ],
)
@every
def test_bad_schedules_are_refused(name, settings):
    with pytest.raises(InvalidRequest, match=next(iter(settings))):
        sampler(name, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"s_churn": -1.0},
        {"s_churn": math.nan},
        {"s_churn": math.inf},
        {"s_min": -0.1},
        {"s_min": 60.0},
        {"s_max": math.nan},
        {"s_noise": 0.0},
        {"s_noise": math.nan},
    ],
)
def test_bad_churn_is_refused(settings):
    with pytest.raises(InvalidRequest, match="Churn: "):
        Churn(**settings)


def test_registry_builds_samplers_by_name():
    assert list(SAMPLERS) == ["ddim", "ddim-stochastic", "churn"]
    assert sampler("churn", steps=9, s_churn=3.0) == Churn(steps=9, s_churn=3.0)
    with pytest.raises(InvalidRequest, match="ddim, ddim-stochastic, churn"):
        sampler("euler")
    with pytest.raises(InvalidRequest, match="DDIM: s_churn: Extra"):
        sampler("ddim", s_churn=3.0)


@pytest.mark.parametrize(("count", "rho"), [(2, 7.0), (18, 7.0), (1000, 7.0), (18, 1.0), (5, 3.3)])
def test_noise_levels_are_karras_schedule(karras_levels, count, rho):
    sigmas = karras(count, 0.002, 80.0, rho)
    assert sigmas == pytest.approx(karras_levels(count, rho=rho), rel=1e-12)
    assert (sigmas[0], sigmas[-1]) == (80.0, 0.002)
    assert sigmas == sorted(set(sigmas), reverse=True)
