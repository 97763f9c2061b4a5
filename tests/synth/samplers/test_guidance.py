import math

import pytest
import torch
from torch import nn

from privacy.errors import InvalidRequest
from synth.preconditioning import EDM, Denoiser
from synth.samplers.base import guided
from synth.samplers.ddim import DDIM
from synth.unet import UNet, UNetConfig

NULL = 3


class Counted(nn.Module):
    """D(x; sigma, y) = y + x/2 + sigma, which remembers the labels of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[int]] = []

    def forward(self, x, sigma, label):
        assert x.dtype == sigma.dtype
        self.calls.append(label.tolist())
        return x / 2 + (label + sigma)[:, None, None, None]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn((2, 1, 2, 2), generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 2])


@pytest.mark.parametrize("w", [0.125, 1.0, 2.0, -0.5])
def test_formula_in_one_batch(x, labels, w):
    denoiser = Counted()
    out = guided(denoiser, w, NULL)(x, 0.7, labels)
    both = [x / 2 + (y + 0.7)[:, None, None, None] for y in (labels, torch.full_like(labels, NULL))]
    torch.testing.assert_close(out, (1 + w) * both[0] - w * both[1])
    assert denoiser.calls == [[0, 2, NULL, NULL]]


@pytest.mark.parametrize("null", [NULL, None])
def test_no_guidance_runs_no_second_pass(x, labels, null):
    denoiser = Counted()
    out = guided(denoiser, 0.0, null)(x, 0.7, labels)
    assert denoiser.calls == [[0, 2]]
    torch.testing.assert_close(out, x / 2 + (labels + 0.7)[:, None, None, None])


def test_null_label_is_left_alone_by_guidance(x):
    """D(null) guided away from D(null) is D(null)."""
    null = torch.full((2,), NULL)
    out = guided(Counted(), 1.5, NULL)(x, 0.7, null)
    torch.testing.assert_close(out, guided(Counted())(x, 0.7, null))


def test_guidance_without_a_null_label_is_refused():
    with pytest.raises(InvalidRequest, match="null label"):
        guided(Counted(), 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_strength_is_refused(bad):
    with pytest.raises(InvalidRequest, match="finite"):
        guided(Counted(), bad, NULL)


def test_network_end_to_end():
    """A float32 network under a float64 state, guided, from noise to images."""
    config = UNetConfig(
        size=8, channels=1, base=8, multipliers=(1, 2), blocks=1, attention=(), classes=NULL
    )
    network = UNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02)
    denoiser, labels = Denoiser(network, EDM()), torch.tensor([0, 1, 2])

    def images(w: float, labels: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return DDIM(steps=4).sample(guided(denoiser, w, NULL), labels, (1, 8, 8), generator)

    plain = images(0.0, labels)
    assert plain.shape == (3, 1, 8, 8)
    assert plain.isfinite().all()
    assert not torch.allclose(plain, images(1.0, labels))
    assert not torch.allclose(plain, images(0.0, labels.flip(0)))
