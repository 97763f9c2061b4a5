"""Rules compute what autograd computes record by record, and keep the fast order of memory."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from privacy.gradients import ENGINES
from privacy.gradients.engines import backward
from privacy.gradients.grad_samplers import concatenated, grouped, weight_gradient

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


def test_a_record_that_is_not_finite_does_not_reach_the_others():
    g, x, weight, where, expected = made(*SHAPES[0])
    x[1] = torch.nan
    found = grouped(g, x, weight, where)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=1e-12)


def test_concatenation_keeps_channels_last():
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(5, c, 4, 3, generator=generator) for c in (2, 3)]
    last = [t.contiguous(memory_format=torch.channels_last) for t in plain]
    for tensors in (plain, last, [plain[0], last[1]]):
        assert torch.equal(concatenated(tensors, 1), torch.cat(plain, 1))
    assert torch.equal(concatenated([last[0], last[0]]), torch.cat([plain[0], plain[0]]))
    assert concatenated(last, 1).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(concatenated(last, dim=1), torch.cat(plain, 1))


class Watched(nn.Module):
    """Notes how far the channels of a feature map lie apart in memory."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.strides = []

    def forward(self, x):
        h = self.enter(x)
        h = torch.cat([h, nn.functional.silu(self.norm(h))], dim=1)
        self.strides.append(h.stride(1))
        return self.leave(h)


def test_layers_pass_feature_maps_on_with_channels_last():
    """Transposed copies would be right too, only slower, and nothing else would tell."""
    model = Watched()
    records = (torch.randn(3, 2, 1, 6, 6),)
    backward(model, lambda m, x: m(x).square().sum(), records, lambda name, g: None)
    assert model.strides == [1]


def test_record_by_record_the_memory_order_is_the_processors_and_leaves_the_sums_alone(monkeypatch):
    records, found = (torch.randn(3, 2, 1, 6, 6),), []
    torch.manual_seed(0)
    model = Watched()
    for capability, stride in (("AVX512", 1), ("AVX2", 36), ("DEFAULT", 36)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        model.strides.clear()
        found.append(
            ENGINES["record"].sum_of_clipped(
                model, lambda m, x: m(x).square().sum(), records, 1.0, 3
            )
        )
        assert model.strides == [stride] * 3
    for name, total in found[0].items():
        torch.testing.assert_close(total, found[1][name], rtol=1e-4, atol=1e-5)
