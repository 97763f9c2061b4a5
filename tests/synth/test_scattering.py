"""Scattering: shapes, invariances, and filters by the book."""

import math

import pytest
import torch

from synth import scattering
from synth.scattering import Scattering


def images(n, channels, size, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, size, size, generator=g) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 8, 17, 28, 32, 33, 64])
def test_shapes(channels, size):
    S = Scattering(channels, size)
    assert S(images(3, channels, size)).shape == (3, S.features)
    assert S(images(0, channels, size)).shape == (0, S.features)


def test_an_images_features_do_not_depend_on_the_others(monkeypatch):
    S, x = Scattering(3, 12), images(9, 3, 12)
    alone = torch.cat([S(one[None]) for one in x])
    assert torch.allclose(S(x), alone, atol=1e-5)
    monkeypatch.setattr(scattering, "_CHUNK", 2)
    assert torch.allclose(S(x), alone, atol=1e-5)


def test_groups_of_maps_have_mean_zero_and_variance_one_within_an_image():
    """The first five groups: x and first-order maps, whose contrast is lost with it."""
    S, x = Scattering(1, 28), images(4, 1, 28)
    first, half = (S(y).reshape(4, 27, -1)[:, :5] for y in (x, 0.5 * x))
    assert torch.allclose(first.mean(2), torch.zeros(4, 5), atol=1e-5)
    assert torch.allclose(first.std(2), torch.ones(4, 5), atol=0.02)
    assert torch.allclose(first, half, atol=0.2)


def test_a_small_shift_moves_features_less_than_pixels():
    g = torch.Generator().manual_seed(1)
    x = torch.nn.functional.avg_pool2d(torch.randn(8, 1, 30, 30, generator=g), 3, 1)
    moved = torch.roll(x, 1, 3)

    def change(f):
        a, b = f(x).flatten(1), f(moved).flatten(1)
        return float((a - b).norm() / (a - a.mean(0)).norm())

    assert change(Scattering(1, 28)) < 0.7 * change(lambda images: images)


def test_wavelets_have_mean_zero_and_their_frequency():
    for scale, half in enumerate((4, 8)):
        for index in range(8):
            angle = math.pi * index / 8
            wave = scattering._morlet(scale, angle, half)
            assert abs(complex(wave.sum())) < 1e-12
            spectrum = torch.fft.fft2(wave, s=(64, 64)).abs()
            row, column = divmod(int(spectrum.argmax()), 64)
            frequency = 2 * math.pi / 64 * torch.tensor([column, row]).double()
            frequency = (frequency + math.pi) % (2 * math.pi) - math.pi
            xi = scattering._FREQUENCY / 2**scale
            expected = xi * torch.tensor([math.cos(angle), math.sin(angle)]).double()
            assert (frequency - expected).norm() < 0.35 * xi


def test_first_order_equals_a_direct_convolution():
    x = images(1, 1, 12)
    fine, _ = Scattering(1, 12)._filters
    found = scattering._modulus(x, fine, 1)[0]
    padded = torch.nn.functional.pad(x, (4,) * 4, mode="replicate")[0, 0].double()
    for index in range(8):
        wave = scattering._morlet(0, math.pi * index / 8, 4)
        for row, column in ((0, 0), (5, 7), (11, 3)):
            patch = padded[row : row + 9, column : column + 9]
            assert float(found[index, row, column]) == pytest.approx(
                abs(complex((patch * wave).sum())), abs=1e-5
            )
