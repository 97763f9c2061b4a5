import itertools
import math

import pytest
import torch
from torch import nn

from privacy.errors import InvalidRequest
from synth.training import EMA, cosine


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def moved(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)


def test_average_is_the_weighted_sum_of_all_steps(model):
    decay, steps = 0.9, 30
    start = model[0].weight.detach().double().clone()
    ema, history = EMA(model, decay), []
    for step in range(steps):
        moved(model, 0.1 * math.sin(step))
        ema.update(model)
        history.append(model[0].weight.detach().double().clone())
    expected = decay**steps * start
    for age, weights in enumerate(reversed(history)):
        expected += (1 - decay) * decay**age * weights
    found = ema.state_dict()["0.weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_default_is_the_papers(model):
    ema = EMA(model)
    before = model[0].weight.detach().clone()
    moved(model, 1.0)
    ema.update(model)
    torch.testing.assert_close(ema.state_dict()["0.weight"], before + 0.001)


def test_average_does_not_alias_the_model(model):
    ema = EMA(model)
    before = ema.state_dict()
    moved(model, 1.0)
    assert all(torch.equal(ema.state_dict()[n], before[n]) for n in before)
    before["0.weight"].zero_()
    assert ema.state_dict()["0.weight"].any()


def test_average_of_half_precision_is_kept_in_float32(model):
    model = model.to(torch.bfloat16)
    ema = EMA(model, 0.999)
    for _ in range(100):
        ema.update(model)
    moved(model, 0.5)
    ema.update(model)
    assert ema.state_dict()["0.weight"].dtype == torch.float32


def test_state_survives(model):
    ema = EMA(model, 0.5)
    moved(model, 1.0)
    ema.update(model)
    other = EMA(model, 0.5)
    other.load_state_dict(ema.state_dict())
    moved(model, 1.0)
    for average in (ema, other):
        average.update(model)
    assert all(torch.equal(other.state_dict()[n], t) for n, t in ema.state_dict().items())


@pytest.mark.parametrize("harm", ["missing", "unknown", "shape"])
def test_state_of_another_network_is_refused_whole(model, harm):
    ema = EMA(model)
    state, before = {n: t + 1 for n, t in ema.state_dict().items()}, ema.state_dict()
    if harm == "missing":
        del state["1.bias"]
    elif harm == "unknown":
        state["2.bias"] = torch.zeros(1)
    else:
        state["1.bias"] = torch.zeros(7)
    with pytest.raises(InvalidRequest, match=r"do not fit.*bias"):
        ema.load_state_dict(state)
    assert all(torch.equal(ema.state_dict()[n], t) for n, t in before.items())


@pytest.mark.parametrize("bad", [-0.1, 1.0, 1.5, math.nan])
def test_bad_decay_is_refused(model, bad):
    with pytest.raises(InvalidRequest, match="decay"):
        EMA(model, bad)


def test_half_a_cosine_from_the_peak_to_zero():
    assert cosine(3e-4, 0, 100) == 3e-4
    assert cosine(3e-4, 25, 100) == pytest.approx(3e-4 * (1 + math.sqrt(0.5)) / 2)
    assert cosine(3e-4, 50, 100) == pytest.approx(1.5e-4)
    assert cosine(3e-4, 100, 100) == pytest.approx(0, abs=1e-19)


def test_falls_all_the_way_and_never_rises_again():
    rates = [cosine(1.0, step, 40) for step in range(60)]
    assert all(after < before for before, after in itertools.pairwise(rates[:41]))
    assert rates[40:] == [rates[40]] * 20


def test_a_frozen_parameter_is_not_averaged(model):
    model[0].requires_grad_(False)
    ema = EMA(model, 0.5)
    ema.update(model)
    assert list(ema.state_dict()) == ["1.weight", "1.bias"]
