"""Canaries: images that no data set holds, put into a training to see whether it gives them away.

Shapes: m canaries, V draws of noise, C channels, H and W pixels.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from synth.denoisers import Denoiser
from synth.loss import DenoisingLoss, draw_views
from synth.records import Records

_SEED = 20230515  # public: what is secret is which canaries are in
_DRAWS = 64


def make_canaries(count: int, channels: int, size: int, classes: int) -> Records:
    """Return images of independent black and white pixels with random labels, always the same.

    Nothing can be said of such an image but by having seen it, and its gradient is as large as
    any's: what is learnt of it is learnt by heart.
    """
    generator = torch.Generator().manual_seed(_SEED)
    pixels = torch.randint(2, (count, channels, size, size), generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return Records(pixels.float() * 2 - 1, labels)


def planted(released: Records, canaries: Records, included: np.ndarray, count: int) -> Records:
    """Return `count` records: released ones, repeated or cut to fit, and then the canaries.

    A canary that is left out leaves a record of NaN in its place, which every step counts as
    zero. That is the neighbouring relation of the ledger, a record without effect: the number of
    records and all other records are the same whether a canary is in or out.

    Args:
        released: at least one record.
        canaries: m records of the same shape, m at most `count`.
        included: bool [m].
        count: N.
    """
    rows = torch.arange(count - len(canaries)) % len(released)
    kept = torch.from_numpy(included)[:, None, None, None]
    images = torch.where(kept, canaries.images, torch.nan)
    return Records(
        torch.cat([released.images[rows], images]),
        torch.cat([released.labels[rows], canaries.labels]),
    )


@torch.no_grad()
def losses(
    denoiser: Denoiser, canaries: Records, on_progress: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Return the denoising loss of every canary, float64 [m], over the same draws at every call.

    Args:
        denoiser: on any device.
        canaries: m records on the same device.
        on_progress: called after every canary.
    """
    loss = DenoisingLoss(denoiser.config)
    generator = torch.Generator().manual_seed(_SEED)
    found: list[Tensor] = []
    for image, label in zip(canaries.images, canaries.labels, strict=True):
        sigma, noise = draw_views(denoiser.config, image[None], _DRAWS, generator)
        found.append(loss(denoiser, image, label, sigma[0], noise[0]))
        on_progress()
    return torch.stack(found).double().cpu().numpy()


def guess(scores: np.ndarray, count: int) -> np.ndarray:
    """Return 1 ("in") for the highest scores, -1 ("out") for the lowest, 0 for the others.

    Args:
        scores: float [m].
        count: r, how many guesses to make, at most m; half on either side.

    Returns:
        int [m] with r entries that are not 0.
    """
    order = np.argsort(scores, kind="stable")
    guesses = np.zeros(len(scores), dtype=np.int64)
    guesses[order[: count // 2]] = -1
    guesses[order[len(order) - (count - count // 2) :]] = 1
    return guesses
