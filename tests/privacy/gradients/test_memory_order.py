"""Sums and layers that follow the order of memory give what they give in any other order."""

import pytest
import torch
from torch import nn

from privacy.gradients import ENGINES, per_record
from privacy.gradients.clip_and_add import FlatSum, add_clipped, add_scaled, squared_norms
from privacy.gradients.grad_samplers.base import concatenated

N = 6


def gradients(rows):
    """One parameter large enough to be summed alone, two small ones, one without dimensions."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"large": (rows, 32, 3, 3), "small": (4, 3, 2), "bias": (4,), "scale": ()}
    return {n: torch.randn(N, *s, generator=generator) for n, s in shapes.items()}


def in_memory_order(tensor):
    """The same numbers, the second dimension last in memory."""
    return tensor.movedim(2, -1).contiguous().movedim(-1, 2) if tensor.ndim > 2 else tensor


@pytest.mark.parametrize("rows", [2, 100])
def test_sums_are_of_the_parameters_shape_whatever_the_order_in_memory(rows):
    plain = gradients(rows)
    ordered = {name: in_memory_order(g) for name, g in plain.items()}
    assert not ordered["large"].is_contiguous()
    norms = torch.stack([g.double().reshape(N, -1).norm(dim=1) for g in plain.values()]).norm(dim=0)
    C = norms.median().item()
    factors = (C / norms).clamp(max=1.0)
    sums = {n: torch.zeros(g.shape[1:], dtype=torch.float64) for n, g in plain.items()}
    assert torch.allclose(add_clipped(sums, ordered, C), norms, rtol=1e-12)
    for name, g in plain.items():
        expected = torch.tensordot(factors, g.double(), dims=1)
        assert torch.allclose(sums[name], expected, rtol=1e-9, atol=1e-9)
        one = {name: torch.zeros_like(expected)}
        squares = add_scaled(one, name, ordered[name], factors)
        assert torch.allclose(one[name], expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(squares, squared_norms(ordered[name]))


@pytest.mark.parametrize("ordered", [0, 1, 2])
def test_a_flat_sum_is_that_of_the_records_whatever_the_order_in_memory(ordered):
    """Of nothing, of the parameters alone (gradients are reordered), and of both."""
    plain = gradients(3)
    order = [in_memory_order if i < ordered else (lambda tensor: tensor) for i in range(2)]
    total = FlatSum({name: order[0](g)[0] for name, g in plain.items()})
    sums, expected = ({n: torch.ones(g.shape[1:]).double() for n, g in plain.items()} for _ in "12")
    C = 30.0
    norms = add_clipped(expected, plain, C)
    assert norms.min() < C < norms.max()
    for i in range(N):
        norm = total.add({name: order[1](g)[i] for name, g in plain.items()}, C)
        assert torch.isclose(norm, norms[i], rtol=1e-12)
    total.add({name: torch.full_like(g[0], torch.nan) for name, g in plain.items()}, C)
    total.add_to(sums)
    assert all(torch.allclose(sums[n], expected[n], rtol=1e-12, atol=1e-12) for n in sums)


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


def test_layers_hand_feature_maps_on_with_channels_last():
    """Transposed copies would be right too, only slower, and nothing else would tell."""
    model = Watched()
    records = (torch.randn(3, 2, 1, 6, 6),)
    per_record.backward(model, lambda m, x: m(x).square().sum(), records, lambda name, g: None)
    assert model.strides == [1]


@pytest.mark.parametrize(("capability", "apart"), [("AVX512", 1), ("AVX2", 36), ("DEFAULT", 36)])
def test_record_by_record_the_order_is_the_processors(monkeypatch, capability, apart):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model = Watched()
    records = (torch.randn(3, 2, 1, 6, 6),)
    ENGINES["record"].sum_of_clipped(model, lambda m, x: m(x).square().sum(), records, 1.0, 3)
    assert model.strides == [apart] * 3
