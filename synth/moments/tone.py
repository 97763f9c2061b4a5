"""A tone curve: quantiles of synthetic pixels to those of a noisy histogram of grey levels.

The histogram was paid for; the curve and its use are free.
"""

import torch
from torch import Tensor

BINS = 64  # of the private histogram
STEPS = 256  # of the curve
TONED = 0.5  # the share of images that it is used on


def fractions(images: Tensor) -> Tensor:
    """Return each image's fractions of its pixels in 64 bins, float64 [n, 64], summing to 1.

    Of images [n, c, S, S] in [0, 1], all channels together.
    """
    n, bins = len(images), (images.flatten(1) * BINS).long().clamp_(0, BINS - 1)
    # One bincount over all images, each with its own bins.
    places = (bins + BINS * torch.arange(n, device=images.device)[:, None]).flatten()
    counts = places.bincount(minlength=n * BINS).reshape(n, BINS)
    return counts.to(torch.float64) / bins.shape[1]


def curve(noisy: Tensor, synthetic: Tensor) -> Tensor:
    """Return the levels [257], rising, to which 0, 1/256 ... 1 are mapped.

    Args:
        noisy: [64], the released sum of `fractions`.
        synthetic: pixels of the model's images, in [0, 1], of any shape.
    """
    share = noisy.clamp_min(0)
    share = share / share.sum() if float(share.sum()) > 0 else torch.full_like(share, 1 / BINS)
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    below = torch.cat([share.new_zeros(1), share.cumsum(0)])
    levels = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    pixels = synthetic.flatten().double().sort().values
    # Halfway through what is equal: an atom, as black is, goes to the middle of its quantiles.
    rank = torch.searchsorted(pixels, levels) + torch.searchsorted(pixels, levels, right=True)
    quantiles = rank.double() / (2 * len(pixels))
    return _interpolate(quantiles, below + 1e-9 * edges, edges)


def toned(images: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
    """Map the pixels of half of the images, chosen by the generator, by the curve."""
    chosen = torch.rand(len(images), generator=generator) < TONED
    place = images[chosen].mul_(len(levels) - 1)
    low = place.floor().clamp_(0, len(levels) - 2)
    index = low.long()
    rise = (levels[1:] - levels[:-1])[index]
    images = images.clone()
    images[chosen] = levels[index] + rise * (place - low)
    return images


def _interpolate(x: Tensor, rising: Tensor, values: Tensor) -> Tensor:
    """Return the piecewise linear function through (rising, values) at x."""
    right = torch.searchsorted(rising, x.contiguous()).clamp(1, len(rising) - 1)
    left = right - 1
    t = ((x - rising[left]) / (rising[right] - rising[left])).clamp(0, 1)
    return values[left] + t * (values[right] - values[left])
