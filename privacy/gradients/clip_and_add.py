"""Clipping and adding up gradients that lie in memory record by record.

Norms and sums are float64, while the gradients are not. They are turned into float64 in blocks:
large parameters a few records at a time, so that a block stays in a processor's cache, and small
ones all together, since a call costs more than what it does with a bias.

Shapes: n records, m numbers of a record in a block.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from privacy.clipping import add_clipped_vector, clip_factors
from privacy.gradients.base import add_to, zeros_in_one_piece
from privacy.gradients.fused_sum import fused_sum

_NUMBERS = 2**18  # in a block: 2 MiB of float64


class FlatSum:
    """Gradients of one record at a time, clipped and summed as one vector.

    For records whose gradients are larger than a processor's cache: memory is walked through once
    for float64, once for the norm and once for the sum, in the order in which parameters lie there
    and whatever their number.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """Begin with zero for parameters, whose gradients lie in memory as they do themselves."""
        self._total, self._totals = zeros_in_one_piece(parameters)
        self._record, self._parts = zeros_in_one_piece(parameters)

    def add(self, gradients: Mapping[str, Tensor], clip_norm: float) -> Tensor:
        """Clip one record's gradients, one [...] a parameter, jointly to C and add them.

        Returns:
            The float64 [] L2 norm over all of them, before clipping.
        """
        torch._foreach_copy_(list(self._parts.values()), [gradients[n] for n in self._parts])
        norm = torch.linalg.vector_norm(self._record)
        add_clipped_vector(self._total, self._record, clip_factors(norm[None], clip_norm)[0])
        return norm

    def add_to(self, sums: Mapping[str, Tensor]) -> None:
        """Add the sum to `sums`, float64 [...] by parameter, in place."""
        add_to(sums, self._totals)


def add_clipped(
    sums: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    clip_norm: float,
    present: Tensor | None = None,
) -> Tensor:
    """Clip every record's gradients jointly to C and add their sum to `sums`, in place.

    Args:
        sums: float64 [...] by parameter; those without gradients stay as they are.
        gradients: [n, ...] of at least one parameter.
        clip_norm: C, positive.
        present: bool [n], the rows that are records; the others add exactly nothing, whatever
            they hold. All are if not said.

    Returns:
        The float64 [n] L2 norms over all gradients, before clipping.
    """
    matrices = list(_matrices(gradients))
    norms = torch.stack([_squared_norms(matrix.numbers_nm) for matrix in matrices]).sum(0).sqrt()
    factors = clip_factors(norms, clip_norm)
    if present is not None:
        factors = factors.masked_fill(~present, 0.0)
    for matrix in matrices:
        matrix.add(sums, factors)
    return norms


def add_scaled(sums: Mapping[str, Tensor], name: str, gradients: Tensor, factors: Tensor) -> Tensor:
    """Add one parameter's gradients [n, ...] times `clip_factors` to its sum, in place.

    Returns:
        The float64 [n] squared L2 norms of what was scaled.
    """
    matrix = _matrix(name, gradients)
    matrix.add(sums, factors)
    return _squared_norms(matrix.numbers_nm)


def squared_norms(gradients: Tensor) -> Tensor:
    """Return the float64 [n] squared L2 norms of gradients [n, ...]."""
    return _squared_norms(_matrix("", gradients).numbers_nm)


def _squared_norms(numbers_nm: Tensor) -> Tensor:
    norms = [
        torch.linalg.vector_norm(block_nm, dim=1, dtype=torch.float64)
        for block_nm in numbers_nm.split(_rows(numbers_nm))
    ]
    return torch.cat(norms).square()


@dataclass(frozen=True)
class _Columns:
    """Where a parameter lies in a matrix.

    Attributes:
        name: of the parameter.
        shape: of the parameter, its dimensions in the order of memory.
        places: for each dimension of the parameter, where it is in `shape`.
    """

    name: str
    shape: torch.Size
    places: list[int]

    def add(self, sums: Mapping[str, Tensor], total_m: Tensor) -> None:
        sums[self.name] += total_m.reshape(self.shape).permute(self.places)


@dataclass(frozen=True)
class _Matrix:
    """Gradients [n, m] of one or more parameters, whose columns follow one another."""

    columns: list[_Columns]
    numbers_nm: Tensor

    def add(self, sums: Mapping[str, Tensor], factors: Tensor) -> None:
        size = _rows(self.numbers_nm)
        blocks = zip(self.numbers_nm.split(size), factors.split(size), strict=True)
        add_up = fused_sum(self.numbers_nm.device)
        total_m, *others = (add_up(block_nm, weights) for block_nm, weights in blocks)
        for other_m in others:
            total_m += other_m
        parts = total_m.split([column.shape.numel() for column in self.columns])
        for column, part_m in zip(self.columns, parts, strict=True):
            column.add(sums, part_m)


def _matrices(gradients: Mapping[str, Tensor]) -> Iterator[_Matrix]:
    """Yield all gradients: every large parameter's by themselves, the small ones' together."""
    small: list[_Matrix] = []
    for name, gradient in gradients.items():
        matrix = _matrix(name, gradient)
        if gradient.numel() >= _NUMBERS:
            yield matrix
        else:
            small.append(matrix)
    if small:
        columns = [column for matrix in small for column in matrix.columns]
        yield _Matrix(columns, torch.cat([matrix.numbers_nm for matrix in small], dim=1))


def _matrix(name: str, gradients: Tensor) -> _Matrix:
    """Return gradients [n, ...] as a matrix: a view where there are no gaps between them."""
    order = sorted(range(gradients.ndim - 1), key=lambda i: -gradients.stride(i + 1))
    ordered = gradients.permute(0, *(i + 1 for i in order))
    columns = _Columns(name, ordered.shape[1:], [order.index(i) for i in range(len(order))])
    return _Matrix([columns], ordered.reshape(len(gradients), -1))


def _rows(numbers_nm: Tensor) -> int:
    """Return how many records make a block."""
    if numbers_nm.device.type != "cpu":
        return len(numbers_nm)
    return max(1, _NUMBERS // max(1, numbers_nm.shape[1]))
