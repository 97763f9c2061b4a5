import json
import math

import pytest
import torch
from torch.func import functional_call, grad, vmap

from privacy.errors import InvalidRequest
from synth.unet import (
    Attention,
    ResidualBlock,
    SinusoidalEmbedding,
    UNet,
    UNetConfig,
    group_norm,
    resampled,
)

MNIST = UNetConfig(size=28, channels=1)
CELEBA = UNetConfig(size=32, channels=3, attention=(8, 16), classes=0)
SMALL = UNetConfig(
    size=8, channels=1, base=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=3
)


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def stirred(config: UNetConfig, seed: int = 0) -> UNet:
    """A network none of whose weights is zero, so that every part of it shows in the output."""
    network = UNet(config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 1, 8, 8, generator=generator)
    return x, torch.randn(4, generator=generator), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize(("config", "paper"), [(MNIST, 1.75e6), (CELEBA, 1.80e6)])
def test_size_is_the_papers(config, paper):
    assert parameters(UNet(config)) == pytest.approx(paper, rel=0.005)


def test_size_by_hand():
    """Every weight of a one-level network, counted on paper."""
    network = UNet(
        UNetConfig(size=8, channels=3, base=4, multipliers=(1,), blocks=1, attention=(), classes=2)
    )
    conv, norm, condition = 9 * 4 * 4 + 4, 8, 16 * 4 + 4
    plain = norm + conv + condition + norm + conv
    widened = 16 + (9 * 8 * 4 + 4) + condition + norm + conv + (8 * 4 + 4)
    attention = norm + (4 * 12 + 12) + (4 * 4 + 4)
    embedding = 3 * 4 + (4 * 16 + 16) + (16 * 16 + 16)
    ends = (9 * 3 * 4 + 4) + norm + (9 * 4 * 3 + 3)
    expected = embedding + ends + plain + (2 * plain + attention) + 2 * widened
    assert parameters(network) == expected


@pytest.mark.parametrize(
    "config",
    [
        MNIST,
        CELEBA,
        SMALL,
        UNetConfig(size=8, channels=1, base=16, multipliers=(1, 2), attention=(4,)),
        UNetConfig(size=8, channels=3, base=6, multipliers=(1, 2, 2, 3), attention=(), classes=0),
        UNetConfig(
            size=64, channels=3, base=8, multipliers=(1, 2, 2, 2), blocks=1, attention=(16, 8)
        ),
        UNetConfig(size=7, channels=2, base=8, multipliers=(2,), attention=(7,)),
    ],
)
def test_shape_is_kept_and_output_starts_at_zero(config):
    x = torch.randn(2, config.channels, config.size, config.size)
    out = UNet(config)(x, torch.randn(2), torch.tensor([0, config.classes]))
    assert out.shape == x.shape
    assert torch.equal(out, torch.zeros_like(x))


def test_attention_stands_where_it_was_asked():
    network = UNet(CELEBA)
    # Resolutions 32, 16, 8. Down: blocks 0-1 | down, 3-4 | down, 6-7. Up: 0-2 | up, 4-6 | up, 8-10.
    assert [i for i, b in enumerate(network.down) if b.attention] == [3, 4, 6, 7]
    assert [i for i, b in enumerate(network.middle) if b.attention] == [0]
    assert [i for i, b in enumerate(network.up) if b.attention] == [2, 6]
    assert [b.resample for b in network.down if b.resample != "none"] == ["down"] * 2
    assert [b.resample for b in network.up if b.resample != "none"] == ["up"] * 2


def test_initial_weights_hang_on_the_seed_only():
    torch.manual_seed(1)
    first = UNet(SMALL, 7)
    drawn = torch.rand(())
    torch.manual_seed(2)
    second, other = UNet(SMALL, 7), UNet(SMALL, 8)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(())), "the global generator was moved"
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.stem.weight, other.stem.weight)


def test_last_convolution_of_every_branch_starts_at_zero_and_no_other():
    network = UNet(MNIST)
    zero = {n for n, p in network.named_parameters() if n.endswith("weight") and not p.any()}
    expected = {f"{n}.conv1.weight" for n, m in network.named_modules() if hasattr(m, "conv1")}
    expected |= {
        f"{n}.projection.weight" for n, m in network.named_modules() if isinstance(m, Attention)
    }
    assert zero == expected | {"conv_out.weight"}


def test_new_block_only_scales():
    block = ResidualBlock(8, 8, 16, attention=True)
    for weight in (block.conv1, block.attention.projection):
        torch.nn.init.zeros_(weight.weight)
        torch.nn.init.zeros_(weight.bias)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x, torch.randn(2, 16)), x / 2)


def test_noise_level_label_and_image_all_matter(batch):
    network = stirred(SMALL)
    x, c_noise, label = batch
    out = network(x, c_noise, label)
    assert not torch.allclose(out, network(x, c_noise + 1, label))
    assert not torch.allclose(out, network(x, c_noise, torch.zeros_like(label)))
    assert not torch.allclose(out, network(x.flip(-1), c_noise, label))


def test_records_do_not_mix(batch):
    network = stirred(SMALL)
    x, c_noise, label = batch
    alone = torch.cat([network(x[[i]], c_noise[[i]], label[[i]]) for i in range(4)])
    torch.testing.assert_close(network(x, c_noise, label), alone, rtol=1e-4, atol=1e-5)


def test_unconditional_network_ignores_labels(batch):
    x, c_noise, label = batch
    network = stirred(UNetConfig(**SMALL.model_dump() | {"classes": 0}))
    assert torch.equal(network(x, c_noise, label), network(x, c_noise))


def test_conditional_network_wants_labels(batch):
    with pytest.raises(TypeError, match="null index"):
        UNet(SMALL)(batch[0], batch[1])


def test_vmap_of_grad_is_the_loop(batch):
    network = stirred(SMALL)
    weights = dict(network.named_parameters())

    def loss(weights, x, c_noise, label):
        return (
            functional_call(network, weights, (x[None], c_noise[None], label[None])).square().sum()
        )

    together = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, *batch)
    for i in range(4):
        alone = torch.autograd.grad(loss(weights, *(t[i] for t in batch)), list(weights.values()))
        for name, expected in zip(weights, alone, strict=True):
            torch.testing.assert_close(together[name][i], expected, rtol=1e-3, atol=1e-4)


def test_attention_is_the_formula():
    torch.manual_seed(0)
    attention = Attention(8).double()
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    q, k, v = attention.qkv(attention.norm(x)).flatten(2).chunk(3, dim=1)
    out = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
    out = attention.projection(out.transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(attention(x), (x + out) / math.sqrt(2))


def test_sinusoids():
    c_noise = torch.tensor([0.0, 0.7, 999.0], dtype=torch.float64)
    out = SinusoidalEmbedding(8)(c_noise)
    frequencies = [1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4]
    expected = [[f(c * w) for f in (math.cos, math.sin) for w in frequencies] for c in c_noise]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=out.dtype), rtol=0, atol=1e-4)


def test_resampling():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resampled(x, "down").tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert torch.equal(resampled(resampled(x, "up"), "down"), x)
    assert torch.equal(resampled(x, "up")[0, 0, :2, :2], torch.zeros(2, 2))
    assert resampled(x, "none") is x


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (32, 8), (128, 32), (192, 32), (144, 24)])
def test_groups(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_config_survives_json():
    config = UNetConfig(**json.loads(CELEBA.model_dump_json()))
    assert config == CELEBA
    assert hash(config) == hash(CELEBA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 30}, "size: expected a multiple of 4"),
        ({"size": 0}, "size: "),
        ({"size": 28.0}, "size: "),
        ({"channels": 0}, "channels: "),
        ({"base": 33}, "base: .*multiple of 2"),
        ({"base": True}, "base: "),
        ({"multipliers": ()}, "multipliers: "),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"blocks": 0}, "blocks: "),
        ({"attention": (8,)}, "28, 14, 7"),
        ({"classes": -1}, "classes: "),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(InvalidRequest, match=message):
        UNetConfig(**MNIST.model_dump() | changes)
