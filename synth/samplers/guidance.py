"""Classifier-free guidance (Ho & Salimans 2021), in the convention of DPDM's tables."""

import math

import torch
from torch import Tensor, nn

from privacy.errors import InvalidRequest
from synth.samplers.base import Denoise


def guided(denoiser: nn.Module, w: float = 0.0, null: int | None = None) -> Denoise:
    """Return the function a sampler takes: D^w = (1 + w) D(x; sigma, y) - w D(x; sigma, null).

    At w = 0 it is the conditional model itself; otherwise both terms go through the network in one
    batch of twice the size. Either way it is one call for the sampler's NFE.

    Args:
        denoiser: D(x [B, C, H, W], sigma [B], labels [B]).
        w: guidance strength; other than 0 only for a model trained with dropped labels.
        null: the network's index for "no label"; needed where w is not 0.

    Raises:
        InvalidRequest: w is not finite, or it is not 0 and there is no null label.
    """
    if not math.isfinite(w):
        raise InvalidRequest(f"guidance strength w must be finite, found {w}")
    if w == 0:
        return lambda x, sigma, labels: denoiser(x, _levels(x, sigma), labels)
    if null is None:
        raise InvalidRequest(
            f"guidance w={w} needs the index of the null label: train with labels and drop some of "
            "them, or sample with w=0"
        )

    def denoise(x: Tensor, sigma: float, labels: Tensor) -> Tensor:
        both = torch.cat([labels, torch.full_like(labels, null)])
        twice = torch.cat([x, x])
        conditional, unconditional = denoiser(twice, _levels(twice, sigma), both).chunk(2)
        return (1 + w) * conditional - w * unconditional

    return denoise


def _levels(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
