"""Clipping and adding up gradients that lie in memory record by record.

Norms and sums are float64, while the gradients are not: a block of rows at a time is turned into
float64, small enough to stay in a processor's cache, or the copies would cost more than the sums.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from privacy.clipping import sum_clipped

_NUMBERS = 2**17  # in a block: 1 MiB of float64


def joint_norms(gradients: Iterable[Tensor]) -> Tensor:
    """Return the float64 [n] L2 norms over all gradients [n, ...] of at least one parameter."""
    return torch.stack([squared_norms(each) for each in gradients]).sum(0).sqrt()


class SquaredNorms:
    """The squared norms [n] over all parameters, added up as their gradients come."""

    def __init__(self, like: Tensor) -> None:
        self.total = torch.zeros_like(like)

    def take(self, name: str, gradients: Tensor) -> None:
        """Add those of one parameter's gradients [n, ...]."""
        self.total += squared_norms(gradients)


def squared_norms(gradients: Tensor) -> Tensor:
    """Return the float64 [n] squared L2 norms of one parameter's gradients [n, ...]."""
    norms = [
        torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.ndim)), dtype=torch.float64)
        for rows in _with_columns(gradients).split(_block(gradients))
    ]
    return torch.cat(norms).square()


def add_clipped(total: Tensor, gradients: Tensor, factors: Tensor) -> None:
    """Add the sum over records of factor times gradient to `total`, in place.

    Args:
        total: float64 [...].
        gradients: [n, ...] of one parameter.
        factors: float64 [n] of `clip_factors`.
    """
    size = _block(gradients)
    for rows, weights in zip(gradients.split(size), factors.split(size), strict=True):
        total += sum_clipped(rows, weights)


def _with_columns(gradients: Tensor) -> Tensor:
    return gradients[:, None] if gradients.ndim == 1 else gradients


def _block(gradients: Tensor) -> int:
    """Return how many records' gradients make a block."""
    if gradients.device.type != "cpu":
        return len(gradients)
    return max(1, _NUMBERS // max(1, gradients[0].numel()))
