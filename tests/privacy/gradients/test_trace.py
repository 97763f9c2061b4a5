"""A trace does what it was traced from, with other numbers, and runs no Python."""

import copy

import pytest
import torch
from torch import nn

from privacy.gradients.grad_samplers import convolution as weight_gradient
from privacy.gradients.per_record import gradients
from privacy.gradients.trace import NotTraceable, trace
from synth.loss import DenoisingLoss, draw_views
from synth.preconditioning import EDM, Denoiser
from synth.unet import UNet, UNetConfig
from tests.privacy.gradients.test_engines import MODELS, N, denoising_loss, make_model, make_records


def zeros_like(records):
    return tuple(torch.zeros_like(part) for part in records)


def assert_equal(found, expected):
    assert torch.allclose(found[0], expected[0], rtol=1e-12, atol=0)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert torch.allclose(found[1][name], gradient, rtol=1e-9, atol=1e-12), name
        assert not found[1][name].requires_grad


@pytest.mark.parametrize("name", sorted(MODELS))
def test_what_was_traced_on_zeros_holds_for_records(name):
    model, records = make_model(name), make_records()
    traced = trace(model, denoising_loss, zeros_like(records))
    for seed in (1, 2):
        records = make_records(seed=seed)
        assert_equal(traced(*records), gradients(model, denoising_loss, records))


@pytest.mark.parametrize("name", ["convolution", "normed"])
def test_a_gpus_way_to_weight_gradients_can_be_traced(monkeypatch, name):
    """It writes products into parts of one tensor."""
    monkeypatch.setattr(weight_gradient, "_in_parts", weight_gradient.shifted)
    model, records = make_model(name), make_records()
    traced = trace(model, denoising_loss, zeros_like(records))
    assert any(node.target is torch.ops.aten.bmm.out for node in traced.graph.graph.nodes)
    assert_equal(traced(*records), gradients(model, denoising_loss, records))


def test_no_python_of_model_or_loss_runs_again():
    calls = []

    def counted(model, *record):
        calls.append(record)
        return denoising_loss(model, *record)

    model, records = make_model("normed"), make_records()
    traced = trace(model, counted, records)
    for _ in range(3):
        traced(*records)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["labelled", "tied"])
def test_parameters_and_buffers_that_change_in_place_are_seen(name):
    model, records = make_model(name), make_records()
    traced = trace(model, denoising_loss, zeros_like(records))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(0.3)
    assert_equal(traced(*records), gradients(model, denoising_loss, records))


def test_the_model_is_left_as_it_was():
    model, records = make_model("labelled"), make_records()
    before = copy.deepcopy(model.state_dict())
    trace(model, denoising_loss, records)(*records)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [type(p) for p in model.parameters()] == [nn.Parameter] * len([*model.parameters()])


def test_what_is_neither_parameter_nor_buffer_is_refused():
    """It might change in place, and a compiler takes small ones for numbers."""
    factor = torch.tensor(2.0)

    def scaled(model, *record):
        return factor * denoising_loss(model, *record)

    with pytest.raises(NotTraceable, match="register them as buffers"):
        trace(make_model("dense"), scaled, make_records())


def test_dropout_is_drawn_for_each_record_and_anew_each_time():
    model, records = nn.Sequential(nn.Linear(50, 1), nn.Dropout(0.5)), (torch.ones(20, 50),)
    traced = trace(model, lambda m, x: m(x[None]).sum(), records)
    one, other = (traced(*records)[1]["0.weight"] for _ in range(2))
    assert 0 < int((one == 0).all(dim=2).sum()) < 20
    assert not torch.equal(one, other)


def test_the_network_itself_is_traced():
    config = UNetConfig(
        size=8, channels=1, base=8, multipliers=(1,), blocks=1, attention=(8,), classes=10
    )
    denoiser = Denoiser(UNet(config), EDM())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    images = 2 * torch.rand(N, 1, 8, 8, generator=generator) - 1
    records = images, torch.arange(N), *draw_views(EDM(), images, 3, generator)
    loss = DenoisingLoss(EDM(), "bfloat16")
    traced = trace(denoiser, loss, zeros_like(records))
    found, expected = traced(*records), gradients(denoiser, loss, records)
    assert found[1].keys() == expected[1].keys() == {n for n, _ in denoiser.named_parameters()}
    for name, gradient in expected[1].items():
        assert gradient.dtype == found[1][name].dtype == torch.float32
        assert torch.allclose(found[1][name], gradient, rtol=1e-4, atol=1e-5), name
