"""The network for sampling on CPUs: the same function in another layout, or with less bits too."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from synth.inference import channels_last
from synth.unet import Attention, ResidualBlock, UNet, UNetConfig

CONFIGS = [
    UNetConfig(
        size=8, channels=1, base=16, multipliers=(1, 2), blocks=1, attention=(4,), classes=10
    ),
    UNetConfig(size=16, channels=3, base=6, multipliers=(1, 2, 2, 3), attention=(), classes=0),
    UNetConfig(size=7, channels=2, base=8, multipliers=(2,), attention=(7,)),
]
BITS = 2**-8  # bfloat16 rounds by half of it
DTYPES = [torch.float32, torch.bfloat16]
# How far off the mean of what a few roundings touched may be.
NEAR = {torch.float32: 1e-6, torch.bfloat16: BITS}


def rounded(module: nn.Module) -> nn.Module:
    return channels_last(module, torch.bfloat16)


def stirred(module: nn.Module, by: float = 0.05) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return module


def maps(*shape: int, mean: float = 0.0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)) + mean
    return x.contiguous(memory_format=torch.channels_last)


def off(found: Tensor, expected: Tensor) -> float:
    """Mean difference, relative to the mean size."""
    return float(((found - expected).abs().mean() / expected.abs().mean()).detach())


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_network_is_the_same_function(config, dtype):
    """As near to float64 as the network itself is, or under autocast for bfloat16.

    In the same order of memory: with AVX-512 a library's convolutions differ by order in how far
    off they are, by a third.
    """
    network = stirred(UNet(config)).to(memory_format=torch.channels_last)
    x, c_noise = maps(6, config.channels, config.size, config.size), torch.linspace(-1, 1, 6)
    label = torch.arange(6) % (config.classes + 1)
    exact = copy.deepcopy(network).double()(x.double(), c_noise.double(), label)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        usual = network(x, c_noise, label)
    found = channels_last(network, dtype)(x, c_noise, label)
    assert found.dtype == dtype and found.shape == x.shape
    assert 0 < off(found.double(), exact) < 1.2 * off(usual.double(), exact)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_map_leaves_the_layout(config, dtype):
    """One that did would be reordered before and after each convolution, and nobody would see."""
    network = channels_last(stirred(UNet(config)), dtype)
    layouts = []
    for module in network.modules():
        if type(module).__name__ in ("_Convolution", "_Norm", "_Attention", "_Block"):
            module.register_forward_hook(
                lambda module, given, out: layouts.append((given[0].stride(), out.stride(), out))
            )
    x = torch.randn(2, config.channels, config.size, config.size)
    network(x, torch.ones(2), torch.zeros(2).long())
    assert layouts
    for given, out, of in layouts[1:]:
        assert given[1] == 1 and (out[1] == 1 or of.shape[1] == 1)


@pytest.mark.parametrize(("channels", "groups"), [(16, 4), (48, 12), (6, 1), (6, 6)])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_norm_is_groupnorm_in_float32(channels, groups, mean):
    norm = stirred(nn.GroupNorm(groups, channels, eps=1e-6), by=1.0)
    x = maps(5, channels, 4, 4, mean=mean)
    expected = functional.group_norm(
        x.double(), groups, norm.weight.double(), norm.bias.double(), 1e-6
    )
    found = rounded(nn.Sequential(norm))(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6 * (1 + mean**2))


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_norm_adds_to_channels_before_it_normalises(mean):
    norm = stirred(nn.GroupNorm(4, 16, eps=1e-6), by=1.0)
    x, added = maps(5, 16, 4, 4), maps(5, 16, 1, 1, mean=mean)
    before = x.clone()
    found = rounded(nn.Sequential(norm))[0](x, added[:, :, 0, 0])
    expected = functional.group_norm(
        (x + added).double(), 4, norm.weight.double(), norm.bias.double(), 1e-6
    )
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6 * (1 + mean**2))
    assert torch.equal(x, before)


@pytest.mark.parametrize("resample", ["none", "down", "up"])
@pytest.mark.parametrize(("leaving", "attention"), [(16, False), (8, True)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_is_a_block(resample, leaving, attention, dtype):
    block = stirred(ResidualBlock(16, leaving, 12, resample=resample, attention=attention))
    x, e = maps(3, 16, 6, 6), maps(3, 12, 1, 1)[:, :, 0, 0]
    given = x.clone(), e.clone()
    expected = copy.deepcopy(block).double()(x.double(), e.double())
    # What is rounded at each convolution comes together in one sum.
    found = channels_last(nn.Sequential(block), dtype)[0](x, e)
    assert 0 < off(found.double(), expected) < 2 * NEAR[dtype]
    assert torch.equal(x, given[0]) and torch.equal(e, given[1])


@pytest.mark.parametrize("level", [0.0, 1.0, -37.3, 1e4])
def test_norm_of_an_even_map_is_finite(level):
    """E[x^2] - E[x]^2 may come out below zero there, by more than eps."""
    norm = nn.GroupNorm(3, 12, eps=1e-6)
    x = torch.full((4, 12, 7, 7), level).contiguous(memory_format=torch.channels_last)
    assert rounded(nn.Sequential(norm))(x).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_attention(dtype):
    attention = stirred(Attention(32))
    x = maps(3, 32, 4, 4)
    expected = copy.deepcopy(attention).double()(x.double())
    # The sum x + projection is not rounded; what is, is rounded four times on the way.
    found = channels_last(nn.Sequential(attention), dtype)(x)
    assert 0 < off(found.double(), expected) < 4 * NEAR[dtype]


@pytest.mark.parametrize(
    "settings",
    [{"stride": 2}, {"dilation": 2, "padding": 2}, {"groups": 4}, {"bias": False, "padding": 1}],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_convolution_keeps_its_settings(settings, dtype):
    convolution = nn.Conv2d(8, 16, 3, **settings)
    x = maps(2, 8, 9, 9).to(dtype)
    same = copy.deepcopy(convolution).to(dtype).double()
    found = channels_last(nn.Sequential(convolution), dtype)(x)
    assert off(found.double(), same(x.double())) < NEAR[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_given_network_is_left_alone(dtype):
    network = stirred(UNet(CONFIGS[0])).train()
    before = copy.deepcopy(network.state_dict())
    made = channels_last(network, dtype)
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert [type(m) for m in network.modules()] == [type(m) for m in UNet(CONFIGS[0]).modules()]
    assert all(torch.equal(v, before[name]) for name, v in network.state_dict().items())
    # The layer that receives a noise level, and the one whose dtype decides it, are float32.
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in made.parameters()) and not made.training
