"""Clipping and adding up gradients that lie in memory record by record.

Norms and sums are float64, while the gradients are not. They are turned into float64 in blocks:
large parameters a few records at a time, so that a block stays in a processor's cache, and small
ones many at a time, since a call costs more than what it does with a bias.

Shapes: n records, m numbers of a record in a block.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from privacy.clipping import sum_clipped

_NUMBERS = 2**17  # in a block: 1 MiB of float64


def joint_norms(gradients: Mapping[str, Tensor]) -> Tensor:
    """Return the float64 [n] L2 norms over all gradients [n, ...] of at least one parameter."""
    squares = [squared_norms(matrix_nm) for _, matrix_nm in _matrices(gradients)]
    return torch.stack(squares).sum(0).sqrt()


def squared_norms(gradients: Tensor) -> Tensor:
    """Return the float64 [n] squared L2 norms of gradients [n, ...]."""
    rows = gradients.flatten(1) if gradients.ndim > 1 else gradients[:, None]
    norms = [
        torch.linalg.vector_norm(block_nm, dim=1, dtype=torch.float64)
        for block_nm in rows.split(_rows(rows))
    ]
    return torch.cat(norms).square()


def add_clipped(
    sums: Mapping[str, Tensor], gradients: Mapping[str, Tensor], factors: Tensor
) -> None:
    """Add the sum over records of factor times gradient to `sums`, in place.

    Args:
        sums: float64 [...] by parameter; those without gradients stay as they are.
        gradients: [n, ...] by parameter.
        factors: float64 [n] of `clip_factors`.
    """
    for names, matrix_nm in _matrices(gradients):
        total_m = _sum_clipped(matrix_nm, factors)
        parts = total_m.split([sums[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            sums[name] += part.reshape(sums[name].shape)


def _sum_clipped(matrix_nm: Tensor, factors: Tensor) -> Tensor:
    size = _rows(matrix_nm)
    blocks = zip(matrix_nm.split(size), factors.split(size), strict=True)
    total_m, *others = (sum_clipped(block_nm, weights) for block_nm, weights in blocks)
    for other_m in others:
        total_m += other_m
    return total_m


def _matrices(gradients: Mapping[str, Tensor]) -> Iterator[tuple[list[str], Tensor]]:
    """Yield all gradients as matrices [n, m], with the parameters whose columns follow in each."""
    names: list[str] = []
    parts: list[Tensor] = []
    numbers = 0
    for name, gradient in gradients.items():
        if numbers + gradient.numel() > _NUMBERS and parts:
            yield names, _joined(parts)
            names, parts, numbers = [], [], 0
        names.append(name)
        parts.append(gradient.flatten(1) if gradient.ndim > 1 else gradient[:, None])
        numbers += gradient.numel()
    if parts:
        yield names, _joined(parts)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _rows(matrix_nm: Tensor) -> int:
    """Return how many records make a block."""
    if matrix_nm.device.type != "cpu":
        return len(matrix_nm)
    return max(1, _NUMBERS // max(1, matrix_nm.shape[1]))
