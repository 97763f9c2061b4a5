import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import functional_call, grad, vmap

from privacy.errors import InvalidRequest
from synth.preconditioning import (
    EDM,
    PRECONDITIONINGS,
    VE,
    Denoiser,
    DenoisingLoss,
    draw_views,
    drop_labels,
)
from synth.unet import UNet, UNetConfig

N, K, CLASSES = 3, 4, 2


class Affine(nn.Module):
    """A raw network small enough to be written out by hand: a x + b_y + c c_noise."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3))
        self.b = nn.Parameter(torch.tensor([0.1, -0.2, 0.5]))
        self.c = nn.Parameter(torch.tensor(0.05))

    def forward(self, x, c_noise, label):
        return self.a * x + (self.b[label] + self.c * c_noise)[:, None, None, None]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand((N, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 1, CLASSES])


@pytest.mark.parametrize("name", list(PRECONDITIONINGS))
def test_loss_is_a_naive_loop(name, images, labels):
    config, network = PRECONDITIONINGS[name](), Affine()
    sigma, noise = draw_views(config, images, K, torch.Generator().manual_seed(1))
    loss = DenoisingLoss(config)
    a, b, c = network.a.item(), network.b.tolist(), network.c.item()
    for i in range(N):
        total = 0.0
        for k in range(K):
            s = sigma[i, k].double()
            clean = images[i, 0].double().numpy().ravel()
            noisy = clean + noise[i, k, 0].double().numpy().ravel()
            c_skip, c_out, c_in = (f(s).item() for f in (config.c_skip, config.c_out, config.c_in))
            for x, y in zip(clean, noisy, strict=True):
                raw = a * c_in * y + b[int(labels[i])] + c * config.c_noise(s).item()
                total += config.weight(s).item() * (c_skip * y + c_out * raw - x) ** 2
        found = loss(Denoiser(network, config), images[i], labels[i], sigma[i], noise[i])
        assert found.shape == ()
        assert found.item() == pytest.approx(total / K, rel=1e-3)


def test_views_are_averaged_not_summed(images, labels):
    config = EDM()
    denoiser, loss = Denoiser(Affine(), config), DenoisingLoss(config)
    sigma, noise = draw_views(config, images, 1, torch.Generator().manual_seed(1))
    once = loss(denoiser, images[0], labels[0], sigma[0], noise[0])
    again = loss(denoiser, images[0], labels[0], sigma[0].repeat(5), noise[0].repeat(5, 1, 1, 1))
    torch.testing.assert_close(once, again)


def test_new_network_has_the_expected_loss():
    """F = 0 leaves the target's unit variance: one for each pixel, for data of sigma_data."""
    config = EDM()
    denoiser = Denoiser(
        UNet(UNetConfig(size=8, channels=1, base=8, multipliers=(1,), attention=())), config
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((1, 1, 8, 8), generator=generator) * 2 - 1
    images = images * config.sigma_data / images.square().mean().sqrt()
    sigma, noise = draw_views(config, images, 2000, generator)
    loss = DenoisingLoss(config)(denoiser, images[0], torch.tensor(0), sigma[0], noise[0])
    assert loss.item() == pytest.approx(64, rel=0.02)


def test_vmap_of_grad_is_the_loop(images, labels):
    config = EDM()
    network = UNet(
        UNetConfig(
            size=8, channels=1, base=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=2
        )
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05)
    denoiser, loss = Denoiser(network, config), DenoisingLoss(config)
    weights = dict(denoiser.named_parameters())
    views = draw_views(config, images, K, torch.Generator().manual_seed(1))

    def record_loss(weights, *record):
        return loss(lambda *args: functional_call(denoiser, weights, args), *record)

    gradients = vmap(grad(record_loss), in_dims=(None, 0, 0, 0, 0))(weights, images, labels, *views)
    for i in range(N):
        record = (images[i], labels[i], views[0][i], views[1][i])
        alone = torch.autograd.grad(loss(denoiser, *record), list(weights.values()))
        for name, expected in zip(weights, alone, strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(
                gradients[name][i], expected, rtol=1e-3, atol=1e-4 * scale + 1e-5
            )


def test_label_reaches_the_loss(images, labels):
    config = EDM()
    sigma, noise = draw_views(config, images, K, torch.Generator().manual_seed(1))
    denoiser, loss = Denoiser(Affine(), config), DenoisingLoss(config)
    values = {loss(denoiser, images[0], y, sigma[0], noise[0]).item() for y in labels}
    assert len(values) == 3


def test_noise_is_scaled_by_its_own_level(images):
    sigma, noise = draw_views(VE(), images, 500, torch.Generator().manual_seed(1))
    assert sigma.shape == (N, 500)
    assert noise.shape == (N, 500, 1, 8, 8)
    assert sigma.dtype == noise.dtype == images.dtype
    z = (noise / sigma[:, :, None, None, None]).flatten().double().numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.02


def test_views_are_reproducible(images):
    first, second = (draw_views(EDM(), images, K, torch.Generator().manual_seed(1)) for _ in "ab")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_empty_batch_has_empty_views(images):
    sigma, noise = draw_views(EDM(), images[:0], K, torch.Generator())
    assert sigma.shape == (0, K)
    assert noise.shape == (0, K, 1, 8, 8)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_bad_multiplicity_is_refused(images, bad):
    with pytest.raises(InvalidRequest, match="multiplicity"):
        draw_views(EDM(), images, bad, torch.Generator())


def test_noise_levels_follow_the_config(images):
    def p_value(config):
        sigma, _ = draw_views(config, images, 5000, torch.Generator().manual_seed(1))
        law = stats.lognorm(s=EDM().p_std, scale=math.exp(EDM().p_mean))
        return stats.kstest(sigma.flatten().numpy(), law.cdf).pvalue

    assert p_value(EDM()) > 1e-3
    assert p_value(EDM(p_mean=-1.12)) < 1e-4


@pytest.mark.parametrize("name", list(PRECONDITIONINGS))
def test_a_draw_of_zero_is_no_level_of_zero(name, images, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, dtype, **_: torch.zeros(shape, dtype=dtype))
    sigma, noise = draw_views(PRECONDITIONINGS[name](), images, K, torch.Generator())
    assert (sigma > 0).all()
    assert noise.isfinite().all()


def uniform(count):
    return torch.rand(count, generator=torch.Generator().manual_seed(0))


def test_labels_are_dropped_at_the_asked_rate():
    labels = torch.arange(20_000) % 10
    dropped = drop_labels(labels, 10, 0.1, uniform(20_000))
    assert dropped.dtype == labels.dtype
    count = int((dropped == 10).sum())
    assert stats.binomtest(count, len(labels), 0.1).pvalue > 1e-3
    assert stats.binomtest(count, len(labels), 0.12).pvalue < 1e-6
    kept = dropped != 10
    assert torch.equal(dropped[kept], labels[kept])
    assert torch.equal(labels, torch.arange(20_000) % 10), "the input was written to"


def test_labels_are_dropped_never_or_always():
    labels = torch.zeros(1000, dtype=torch.int64)
    assert not drop_labels(labels, 10, 0.0, uniform(1000)).any()
    assert (drop_labels(labels, 10, 1.0, uniform(1000)) == 10).all()


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_bad_drop_probability_is_refused(bad):
    with pytest.raises(InvalidRequest, match="drop probability"):
        drop_labels(torch.zeros(1, dtype=torch.int64), 10, bad, uniform(1))
