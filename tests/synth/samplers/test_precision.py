"""bfloat16 in the network's products, and nowhere else."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from privacy.errors import InvalidRequest
from synth.inference import CapturedNetwork, at_precision
from synth.preconditioning import EDM, Denoiser
from synth.samplers.base import Sampler, guided
from synth.samplers.churn import Churn
from synth.samplers.ddim import DDIM
from synth.settings import PRECISIONS
from synth.unet import UNet, UNetConfig

SHAPE = (1, 8, 8)
# bfloat16 rounds to 2^-9 relative; the network is some ten products deep.
MEAN, MOST = 0.01, 0.15


@pytest.fixture
def denoiser() -> Denoiser:
    config = UNetConfig(
        size=8, channels=1, base=16, multipliers=(1, 2), blocks=1, attention=(4,), classes=10
    )
    network = UNet(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return Denoiser(network, EDM())


CHURN = Churn(steps=8, s_churn=1.6)


def images(denoiser: nn.Module, w: float = 0.0, sampler: Sampler = CHURN) -> torch.Tensor:
    labels = torch.arange(20) % 10
    generator = torch.Generator().manual_seed(0)
    return sampler.sample(guided(denoiser, w, null=10), labels, SHAPE, generator)


def away(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """Mean and largest difference of two sets of images, as they would be stored."""
    difference = (a.clamp(-1, 1) - b.clamp(-1, 1)).abs()
    return float(difference.mean()), float(difference.max())


@pytest.mark.parametrize("w", [0.0, 1.0])
@pytest.mark.parametrize("sampler", [CHURN, DDIM(steps=8)])
def test_images_are_those_of_float32_within_rounding(denoiser, w, sampler):
    exact = images(at_precision(copy.deepcopy(denoiser)), w, sampler)
    rounded = images(at_precision(denoiser, "bfloat16"), w, sampler)
    mean, most = away(exact, rounded)
    assert 0 < mean < MEAN and most < MOST
    assert rounded.dtype == torch.float64


@pytest.mark.parametrize("w", [0.0, 1.0])
def test_float32_is_the_plain_network_within_its_own_rounding(denoiser, w):
    plain = images(copy.deepcopy(denoiser), w)
    mean, most = away(plain, images(at_precision(denoiser), w))
    assert mean < 1e-6 and most < 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
def test_on_a_cpu_channels_are_innermost(denoiser, precision):
    """The plain network would give the same images, only slower, and nothing else would tell."""
    ready = at_precision(denoiser, precision)
    strides = []
    for block in ready.network.down:
        block.register_forward_hook(lambda block, given, out: strides.append(out.stride(1)))
    images(ready)
    assert strides and set(strides) == {1}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_images_repeat_to_the_last_bit(denoiser, precision):
    ready = at_precision(denoiser, precision)
    assert torch.equal(images(ready), images(ready))


@pytest.mark.parametrize("rounded", ["nothing", "schedule", "state"])
def test_a_schedule_or_a_state_in_bfloat16_is_seen(oracle, monkeypatch, rounded):
    """On Gaussian data a DDIM path is a product of known factors, to a billionth or not at all."""
    data, sampler = oracle(), DDIM(steps=50)
    expected = 1.0
    for a, b in pairwise([*sampler.sigmas, 0.0]):
        expected *= 1 + (b - a) * data.slope(a)
    denoise = data.denoise
    if rounded == "schedule":
        coarse = torch.tensor(sampler.sigmas).bfloat16().tolist()
        monkeypatch.setattr(DDIM, "sigmas", coarse)
    elif rounded == "state":
        denoise = lambda x, sigma, labels: data.denoise(x.bfloat16().double(), sigma, labels)  # noqa: E731
    x = torch.full((1, 1, 1, 1), 60.0, dtype=torch.float64)
    out = sampler.solve(denoise, x, torch.zeros(1), torch.Generator()).item()
    exact = data.m + expected * (60.0 - data.m)
    assert (out == pytest.approx(exact, rel=1e-9)) == (rounded == "nothing")


def test_noise_level_and_state_never_become_bfloat16(denoiser):
    """The network receives c_noise in float32 and embeds it so; the sum outside is float64."""
    ready = at_precision(denoiser, "bfloat16")
    seen = {}
    condition = ready.network.condition
    condition.noise.register_forward_hook(
        lambda module, given, embedded: seen.update(
            received=given[0].dtype, embedded=embedded.dtype
        )
    )
    ready.network.stem.register_forward_hook(lambda module, given, out: seen.update(stem=out.dtype))
    out = ready(
        torch.ones(2, *SHAPE, dtype=torch.float64), torch.ones(2).double(), torch.zeros(2).long()
    )
    assert seen == {"received": torch.float32, "embedded": torch.float32, "stem": torch.bfloat16}
    assert out.dtype == torch.float64
    assert {p.dtype for p in ready.parameters()} == {torch.float32}


def test_the_context_ends_with_the_call(denoiser):
    at_precision(denoiser, "bfloat16")(torch.ones(1, *SHAPE), torch.ones(1), torch.zeros(1).long())
    assert not torch.is_autocast_enabled("cpu")


def test_unknown_precision_is_refused(denoiser):
    with pytest.raises(InvalidRequest, match="float32, bfloat16"):
        at_precision(denoiser, "float16")


def test_a_replayed_network_follows_its_inputs(denoiser):
    """Without a card the work itself is repeated, on the same tensors as a graph's."""
    network = denoiser.network.eval()
    captured = CapturedNetwork(network)
    generator = torch.Generator().manual_seed(0)
    for rows in (2, 3, 2):
        x = torch.randn(rows, *SHAPE, generator=generator)
        given = x, torch.rand(rows, generator=generator), torch.arange(rows)
        with torch.inference_mode():
            assert torch.equal(captured(*given), network(*given))
    assert len(captured._captured) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_captured_network_gives_what_the_plain_one_gives(denoiser, precision):
    expected = images(at_precision(copy.deepcopy(denoiser)))
    ready = at_precision(denoiser, precision, "cuda")
    labels = torch.arange(20, device="cuda") % 10
    for _ in range(2):  # captured, then replayed
        generator = torch.Generator().manual_seed(0)
        drawn = CHURN.sample(guided(ready), labels, SHAPE, generator).cpu()
        assert away(expected, drawn)[0] < MEAN
