"""Layers follow the order of memory that suits them, and give what they give in any other."""

import pytest
import torch
from torch import nn

from privacy.gradients import ENGINES
from privacy.gradients.grad_samplers.base import concatenated
from privacy.gradients.layerwise import backward


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
    backward(model, lambda m, x: m(x).square().sum(), records, lambda name, g: None)
    assert model.strides == [1]


@pytest.mark.parametrize(("capability", "apart"), [("AVX512", 1), ("AVX2", 36), ("DEFAULT", 36)])
def test_record_by_record_the_order_is_the_processors(monkeypatch, capability, apart):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model = Watched()
    records = (torch.randn(3, 2, 1, 6, 6),)
    ENGINES["record"].sum_of_clipped(model, lambda m, x: m(x).square().sum(), records, 1.0, 3)
    assert model.strides == [apart] * 3
