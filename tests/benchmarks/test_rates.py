"""Operations and bytes against closed forms."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import rates as subject
from benchmarks.workload import SMALL
from synth.unet import Attention, UNet


@pytest.fixture(scope="module")
def workload():
    changed = {"base": 8, "multipliers": (1,), "attention": ()}
    tiny = SMALL.network.model_copy(update=changed)
    return replace(SMALL, network=tiny, views=3)


def _layers(workload):
    """Layers of the U-Net with the operations of each on one view, forward: 2 a product."""
    found = {}

    def note(layer, inputs, output):
        if isinstance(layer, nn.Conv2d):
            found[layer] = 2 * layer.weight[0].numel() * output.shape[1:].numel()
        elif isinstance(layer, nn.Linear):
            found[layer] = 2 * layer.weight.numel()
        elif isinstance(layer, Attention):
            _, channels, height, width = output.shape
            found[layer] = 2 * 2 * channels * (height * width) ** 2  # weights, and values by them

    network = UNet(workload.network)
    for layer in network.modules():
        layer.register_forward_hook(note)
    network(torch.zeros(1, 1, 8, 8), torch.ones(1), torch.zeros(1, dtype=torch.long))
    return found, found[network.stem]


def test_operations_are_those_of_each_layers_products(workload):
    # Forward, the weight's gradient and the input's are one product each, of the same size; only
    # the first layer's input, which is data, needs none.
    layers, stem = _layers(workload)
    found = subject.useful_flops(workload, 1) / workload.views
    assert found == pytest.approx(3 * sum(layers.values()) - stem, rel=0.01)


def test_operations_grow_with_records_and_views(workload):
    one = subject.useful_flops(workload, 1)
    assert subject.useful_flops(workload, 7) == 7 * one
    assert subject.useful_flops(replace(workload, views=6), 1) == pytest.approx(2 * one, rel=1e-3)


def test_torch_counts_two_for_a_multiplication_and_an_addition():
    a, b = torch.zeros(5, 7), torch.zeros(7, 3)
    with FlopCounterMode(display=False) as counter:
        a @ b
    assert counter.get_total_flops() == 2 * 5 * 7 * 3


def test_bytes_are_what_is_kept_and_the_weights_of_every_micro_batch(workload):
    weights = 4 * sum(p.numel() for p in workload.denoiser().parameters())
    whole, halves = (subject.least_bytes(workload, 8, size, "float32") for size in (8, 4))
    assert halves - whole == 3 * weights
    kept = (whole - 3 * weights) / (2 * 8)
    # The inputs of the convolutions at least: 8 channels of 8x8 pixels a view in float32.
    convolutions = [layer for layer in _layers(workload)[0] if isinstance(layer, nn.Conv2d)]
    assert kept > workload.views * 4 * 8 * 64 * (len(convolutions) - 2)
    assert subject.least_bytes(workload, 16, 16, "float32") - 3 * weights == 2 * 16 * kept
    assert subject.least_bytes(workload, 8, 8, "bfloat16") < whole


def test_rates_are_quotients_of_what_was_measured(workload, monkeypatch):
    monkeypatch.setitem(subject._SIDE, "cpu", 100)
    monkeypatch.setitem(subject._COPIED, "cpu", 4000)
    taken = {"matrix product": 0.5, "copy": 0.25}
    monkeypatch.setattr(
        subject,
        "interleave",
        lambda cases, seconds: {c.name: [taken.get(c.name, 2.0)] for c in cases},
    )
    monkeypatch.setattr(subject, "records_in", lambda workload, seconds: 2)
    found = subject.rates(workload, 1.0, 1.0)
    assert [rate.precision for rate in found] == ["float32"] * 2 + ["bfloat16"] * 2
    assert found[0].way == subject.LIMIT
    assert found[1].way.startswith("private")
    for rate in found:
        flops = subject.useful_flops(workload, 2) / 2.0
        assert rate.teraflops == pytest.approx(flops / 1e12)
        assert rate.of_matrix == pytest.approx(flops / (2 * 100**3 / 0.5))
        assert rate.of_bandwidth == pytest.approx(rate.gigabytes * 1e9 / (2 * 4000 / 0.25))
