"""All ways to a convolution's weight gradients against autograd, record by record in float64."""

import pytest
import torch
from torch.nn import functional

from privacy.gradients import ENGINES
from privacy.gradients.grad_samplers import convolution as module
from privacy.gradients.grad_samplers.convolution import grouped, shifted, weight_gradient
from synth.loss import DenoisingLoss, draw_views
from synth.preconditioning import EDM, Denoiser
from synth.unet import UNet, UNetConfig

B, K, C, D = 3, 2, 4, 5

# Kernel, stride, padding, dilation, height and width.
SHAPES = [
    ((3, 3), (1, 1), (1, 1), (1, 1), (8, 8)),
    ((3, 3), (1, 1), (0, 0), (1, 1), (7, 5)),
    ((3, 2), (1, 1), (2, 1), (1, 1), (4, 9)),
    ((3, 3), (1, 1), (2, 2), (2, 2), (6, 6)),
    ((2, 3), (1, 1), (0, 3), (3, 1), (7, 4)),
    ((1, 1), (1, 1), (0, 0), (1, 1), (6, 5)),
    ((1, 1), (1, 1), (1, 1), (1, 1), (3, 3)),
    ((4, 4), (1, 1), (0, 0), (1, 1), (4, 4)),
]
STRIDED = [
    ((3, 3), (2, 2), (1, 1), (1, 1), (8, 8)),
    ((1, 1), (2, 1), (0, 0), (1, 1), (5, 6)),
]


def made(kernel, stride, padding, dilation, size):
    """Output gradients, inputs, shape of the weight, where, and the gradients by autograd."""
    generator = torch.Generator().manual_seed(0)
    where = (stride, padding, dilation)
    x = torch.randn(B, K, C, *size, generator=generator, dtype=torch.float64)
    weight = torch.zeros(D, C, *kernel, dtype=torch.float64, requires_grad=True)
    outputs = [functional.conv2d(one, weight, None, *where) for one in x]
    g = torch.randn(B, *outputs[0].shape, generator=generator, dtype=torch.float64)
    expected = [
        torch.autograd.grad(out, weight, one)[0] for out, one in zip(outputs, g, strict=True)
    ]
    return g, x, weight.shape, where, torch.stack(expected)


@pytest.mark.parametrize("shapes", SHAPES + STRIDED, ids=str)
@pytest.mark.parametrize("way", [weight_gradient, grouped])
def test_every_records_gradient_is_autograds(way, shapes):
    *args, expected = made(*shapes)
    torch.testing.assert_close(way(*args), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [True, False])
def test_shifted_products_are_the_same(shapes, channels_last):
    g, x, weight, where, expected = made(*shapes)
    if channels_last:
        g, x = (t.movedim(2, -1).contiguous().movedim(-1, 2) for t in (g, x))
    torch.testing.assert_close(shifted(g, x, weight, where), expected, rtol=1e-12, atol=1e-12)


def test_a_record_that_is_not_finite_stays_by_itself():
    g, x, weight, where, expected = made(*SHAPES[0])
    x[1] = torch.nan
    found = shifted(g, x, weight, where)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=1e-12)


def test_the_layerwise_engine_gives_the_same_sums_by_shifted_products(monkeypatch):
    denoiser = Denoiser(
        UNet(
            UNetConfig(
                size=8, channels=1, base=16, multipliers=(1, 2), blocks=1, attention=(), classes=2
            )
        ),
        EDM(),
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    images = torch.rand(4, 1, 8, 8, generator=generator)
    records = (images, torch.arange(4) % 2, *draw_views(EDM(), images, 3, generator))

    def sums():
        found = ENGINES["layerwise"].sum_of_clipped(denoiser, DenoisingLoss(EDM()), records, 0.5, 4)
        return torch.cat([total.flatten() for total in found.values()])

    expected, calls = sums(), []

    def counted(*args):
        calls.append(args)
        return shifted(*args)

    monkeypatch.setattr(module, "_in_parts", counted)
    assert (sums() - expected).norm() < 1e-5 * expected.norm()
    assert calls
