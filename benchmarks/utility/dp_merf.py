"""DP-MERF (Harder, Adamczewski & Park 2021), the small peer: one noisy mean embedding, matched.

The mean of random Fourier features φ(x) ⊗ one-hot(y) over the records is released once by the
Gaussian mechanism; a generator is then trained so that its images have that embedding. Written for
this benchmark from the paper, with its MNIST setting: 10,000 features, two convolutional layers.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from privacy.accounting.calibrate import noise_multiplier
from privacy.noise import SecureGaussian

_FEATURES = 10_000
_CODE = 5  # length of the generator's input beside the one-hot label
_BATCH = 500
_STEPS = 5 * 120  # five epochs of 60,000
_LENGTH_SCALE = math.sqrt(105)  # σ² = 105, the paper's for pixels in [0, 1] of MNIST


def fit_and_sample(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    epsilon: float,
    delta: float,
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit DP-MERF and return `count` images uint8 [count, H, W, C] and labels int64 [count].

    Args:
        images: uint8 [N, H, W, C], the private records.
        labels: int64 [N] in 0..classes-1.
        classes: number of classes.
        epsilon, delta: the guarantee for one record under zero-out.
        count: images to return, the same number of each class.
    """
    height, width, channels = images.shape[1:]
    frequencies = torch.randn(height * width * channels, _FEATURES // 2) / _LENGTH_SCALE
    sums = torch.zeros(_FEATURES, classes, dtype=torch.float64)
    for rows in np.array_split(np.arange(len(images)), math.ceil(len(images) / _BATCH)):
        pixels = torch.from_numpy(images[rows]).flatten(1).float() / 255
        hot = nn.functional.one_hot(torch.from_numpy(labels[rows]), classes).float()
        sums += _features(pixels, frequencies).T @ hot
    # ‖φ(x) ⊗ one-hot(y)‖ = 1, so a record changes the sum by at most 1.
    sigma = noise_multiplier(epsilon, delta, sampling_probability=1.0, steps=1)
    noise = SecureGaussian().gaussian(tuple(sums.shape), sigma)
    embedding = ((sums + noise) / len(images)).float()
    generator = _trained(embedding, frequencies, classes, (channels, height, width))
    wanted = torch.arange(count) % classes
    with torch.inference_mode():
        made = [_generate(generator, part, classes) for part in wanted.split(_BATCH)]
    pixels = torch.cat(made).view(count, channels, height, width).permute(0, 2, 3, 1)
    return (pixels * 255).round().byte().numpy(), wanted.numpy()


def _features(pixels: Tensor, frequencies: Tensor) -> Tensor:
    """Return φ(x), [B, _FEATURES] of norm 1: cosines and sines of random projections."""
    angles = pixels @ frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1) / math.sqrt(_FEATURES / 2)


def _trained(
    embedding: Tensor, frequencies: Tensor, classes: int, shape: tuple[int, int, int]
) -> nn.Module:
    generator = _generator(classes, shape)
    optimiser = torch.optim.Adam(generator.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.9 ** (1 / 120))
    for _ in range(_STEPS):
        labels = torch.randint(classes, (_BATCH,))
        hot = nn.functional.one_hot(labels, classes).float()
        made = _features(_generate(generator, labels, classes), frequencies)
        # Classes of the released sum are weighted as they are in it; uniform ones as 1 / classes.
        loss = (embedding - made.T @ hot / _BATCH).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return generator.eval()


def _generator(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    channels, height, width = shape
    rows, columns = math.ceil(height / 4), math.ceil(width / 4)
    return nn.Sequential(
        nn.Linear(_CODE + classes, 200),
        nn.BatchNorm1d(200),
        nn.ReLU(),
        nn.Linear(200, 2 * 8 * rows * columns),
        nn.BatchNorm1d(2 * 8 * rows * columns),
        nn.ReLU(),
        nn.Unflatten(1, (16, rows, columns)),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.ReLU(),
        nn.Upsample(size=(height, width), mode="bilinear"),
        nn.Conv2d(16, channels, 5, padding=2),
        nn.Sigmoid(),
        nn.Flatten(),
    )


def _generate(generator: nn.Module, labels: Tensor, classes: int) -> Tensor:
    """Return pixels in [0, 1], [B, C·H·W], one image a label."""
    hot = nn.functional.one_hot(labels, classes).float()
    return generator(torch.cat([torch.randn(len(labels), _CODE), hot], dim=1))
