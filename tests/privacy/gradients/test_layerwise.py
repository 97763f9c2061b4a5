import weakref

import pytest
import torch
from torch import nn

from privacy.errors import UmbraError
from privacy.gradients import ENGINES, engines
from privacy.gradients.base import trainable
from privacy.gradients.engines import TwoPassEngine, backward
from privacy.gradients.grad_samplers import RULES, batched_apply
from synth.preconditioning import EDM, Denoiser, DenoisingLoss, draw_views
from synth.unet import UNet, UNetConfig

N, K = 4, 3
NETWORK = UNetConfig(size=8, channels=1, base=8, multipliers=(1, 2), blocks=1, attention=(4,))
WITH_RULES = (nn.Conv2d, nn.Embedding, nn.GroupNorm, nn.Linear)


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    denoiser = Denoiser(UNet(NETWORK), EDM())
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    return denoiser


@pytest.fixture
def records():
    generator = torch.Generator().manual_seed(1)
    images = 2 * torch.rand((N, 1, 8, 8), generator=generator) - 1
    return images, torch.arange(N), *draw_views(EDM(), images, K, generator)


def test_every_layer_of_the_network_that_ships_runs_by_its_rule(denoiser, records, monkeypatch):
    """A layer that falls to vmap is right but several times slower, and nothing else would tell."""
    used = []
    monkeypatch.setattr(
        engines,
        "batched_apply",
        lambda operation, args: used.append(operation) or batched_apply(operation, args),
    )
    engines.backward(denoiser, DenoisingLoss(EDM()), records, lambda name, gradients: None)
    layers = [module for module in denoiser.modules() if isinstance(module, WITH_RULES)]
    assert len(used) == len(layers)
    assert set(used) == {rule.operation for rule in RULES.values()}
    owned = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    assert owned == {id(p) for p in trainable(denoiser).values()}


def test_gradients_that_nobody_holds_are_free_before_the_next(denoiser, records):
    alive, most = weakref.WeakSet(), []

    def take(name, gradients):
        most.append(sum(storage.nbytes() for storage in alive))
        alive.add(gradients.untyped_storage())

    engines.backward(denoiser, DenoisingLoss(EDM()), records, take)
    parameters = trainable(denoiser)
    layer = 4 * N * max(p.numel() for p in parameters.values())
    everything = 4 * N * sum(p.numel() for p in parameters.values())
    assert len(most) == len(parameters)
    assert max(most) <= 2 * layer < everything / 2
    held = []
    alive.clear()
    engines.backward(
        denoiser, DenoisingLoss(EDM()), records, lambda n, g: (take(n, g), held.append(g))
    )
    assert max(most) > everything / 2  # the measure itself can tell


def test_each_parameter_is_taken_once_with_a_gradient_for_every_record(denoiser, records):
    seen = []
    engines.backward(
        denoiser, DenoisingLoss(EDM()), records, lambda name, g: seen.append((name, g.shape))
    )
    assert sorted(seen) == sorted((n, (N, *p.shape)) for n, p in trainable(denoiser).items())


def test_a_second_pass_that_differs_is_refused(denoiser, records, monkeypatch):
    """Clipped by the norm of other numbers, a record could exceed C."""
    passes = []

    def unsteady(model, loss, part, take):
        passes.append(part)
        scale = 1 + 1e-6 * (len(passes) % 2)
        return backward(model, loss, part, lambda name, g: take(name, g * scale))

    monkeypatch.setattr(engines, "backward", unsteady)
    with pytest.raises(UmbraError, match="fixed order"):
        TwoPassEngine().sum_of_clipped(denoiser, DenoisingLoss(EDM()), records, 1.0, N)
    assert len(passes) == 2


def test_a_rule_outside_of_vmap_is_refused():
    with pytest.raises(RuntimeError, match="outside of vmap"):
        batched_apply(RULES[nn.functional.linear].operation, (torch.ones(1),))


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_bfloat16_changes_last_bits_and_no_bound(denoiser, records, name):
    engine, C = ENGINES[name], 0.7
    exact = ENGINES["record"].sum_of_clipped(denoiser, DenoisingLoss(EDM()), records, C, N)
    rough = engine.sum_of_clipped(denoiser, DenoisingLoss(EDM(), "bfloat16"), records, C, N)
    expected, found = (
        torch.cat([total.flatten() for total in result.values()]) for result in (exact, rough)
    )
    assert found.dtype == torch.float64
    assert 1e-4 < (found - expected).norm() / expected.norm() < 0.1
    for i in range(N):
        alone = tuple(part[i : i + 1] for part in records)
        one = engine.sum_of_clipped(denoiser, DenoisingLoss(EDM(), "bfloat16"), alone, C, 1)
        norm = torch.cat([total.flatten() for total in one.values()]).norm()
        assert norm == pytest.approx(C, rel=1e-9) and norm <= C


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_autocast_does_not_round_the_statistics_of_norms(name):
    model, records = nn.GroupNorm(2, 8), (3 + torch.randn(N, K, 8, 5, 5),)
    found = []
    for enabled in (False, True):

        def loss(model, x, enabled=enabled):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                return (model(x) - x).square().sum()

        found.append(ENGINES[name].sum_of_clipped(model, loss, records, 1e9, N))
    for parameter, expected in found[0].items():
        assert torch.allclose(found[1][parameter], expected, rtol=1e-4, atol=1e-4)
