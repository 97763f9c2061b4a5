"""Clipping: no record moves a sum by more than the clip norm C, whatever the record holds.

g_i is scaled by min(1, C / ||g_i||_2), with one norm over all of a record's coordinates, and then
summed (Abadi et al. 2016, algorithm 1). Norms and sums are float64 whatever the gradients are.

Shapes: n records, m numbers of a record.
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor

from privacy.validation import positive_number

# Norm, quotient and product are each rounded in float64. This much less than C pays for all of
# them, so that a clipped float64 vector stays within C itself and not just near it.
_ROUNDING = 2.0**-40

# Numbers in a block that is turned into float64 at a time: 2 MiB, which a processor's cache holds.
_BLOCK = 2**18


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """Return the factor by which each record's vector is scaled: min(1, C / norm).

    `norms` [n] are L2 norms, one for a record over all its coordinates jointly. Returns float64 [n]
    on their device. A vector times its factor has norm at most C if the norm is float64, and at
    most C (1 + 1e-6) if it is float32 rounded to nearest. The factor is 0 where the norm is not
    finite. Raises InvalidRequest if C is not a positive, finite number.

    >>> clip_factors(torch.tensor([0.5, 4.0, torch.inf]), 1.0)
    tensor([1.0000, 0.2500, 0.0000], dtype=torch.float64)
    """
    C = positive_number("the clip norm", clip_norm)
    norms = norms.to(torch.float64)
    factors = (C / (norms * (1.0 + _ROUNDING))).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, 0.0)


def sum_clipped(vectors: Tensor, factors: Tensor) -> Tensor:
    """Return sum_i factor_i vector_i as float64 [...].

    `vectors` [n, ...] are of any float type, `factors` float64 [n] from `clip_factors`; a factor of
    0 leaves a record out even if its vector holds NaN or infinities.

    >>> vectors = torch.tensor([[0.0, 0.5], [4.0, 0.0], [torch.inf, 0.0]])
    >>> sum_clipped(vectors, clip_factors(vectors.norm(dim=1), 1.0))
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    numbers = _left_out(vectors.to(torch.float64), factors.reshape(-1, *[1] * (vectors.ndim - 1)))
    return torch.tensordot(factors, numbers, dims=1)


def _left_out(numbers: Tensor, factors: Tensor) -> Tensor:
    """Return `numbers` with zeros where their factor is zero: 0 times NaN is NaN."""
    left_out = factors == 0
    # Nearly always there is none to leave out and nothing need be copied; but asking a GPU means
    # waiting for it.
    if numbers.device.type != "cpu" or left_out.any():
        return numbers.masked_fill(left_out, 0.0)
    return numbers


def zero_sums(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return float64 zeros of the parameters' shapes, on the device of the first."""
    return zeros_in_one_piece(parameters)[1]


def zeros_in_one_piece(parameters: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return float64 zeros for all parameters as one vector, and each one's part of it.

    A part has its parameter's shape and order of memory; the device is that of the first.
    """
    device = next(iter(parameters.values())).device
    sizes = [p.numel() for p in parameters.values()]
    vector = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
    parts = {}
    for (name, p), part in zip(parameters.items(), vector.split(sizes), strict=True):
        # The parameter itself may have gaps; an empty tensor like it has none.
        parts[name] = part.as_strided(p.shape, torch.empty_like(p, device="meta").stride())
    return vector, parts


def add_to(sums: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    """Add to each sum the part of its name, in place, in few launches on a GPU."""
    torch._foreach_add_(list(sums.values()), [parts[name] for name in sums])


def add_clipped_vector(total: Tensor, vector: Tensor, clip_norm: float) -> None:
    """Clip one record's float64 [m] vector to C and add it to a total [m], in place."""
    factor = clip_factors(torch.linalg.vector_norm(vector)[None], clip_norm)[0]
    total.addcmul_(_left_out(vector, factor), factor)


def add_clipped(
    sums: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    clip_norm: float,
    present: Tensor | None = None,
) -> None:
    """Clip every record's gradients jointly to C and add their sum to `sums`, in place.

    Args:
        sums: float64 [...] by parameter; those without gradients stay as they are.
        gradients: [n, ...] of at least one parameter.
        clip_norm: C, positive.
        present: bool [n], the rows that are records, by default all; the others add nothing.
    """
    matrices = _matrices(gradients)
    norms = torch.stack([matrix.squared_norms() for matrix in matrices]).sum(0).sqrt()
    factors = clip_factors(norms, clip_norm)
    if present is not None:
        factors = factors.masked_fill(~present, 0.0)
    for matrix in matrices:
        matrix.add(sums, factors)


class _Columns(NamedTuple):
    name: str
    shape: torch.Size  # of the parameter, its dimensions in the order of memory
    places: list[int]  # for each dimension of the parameter, where it is in `shape`


class GradientMatrix(NamedTuple):
    """Gradients [n, m] of one or more parameters, whose columns follow one another."""

    columns: list[_Columns]
    numbers_nm: Tensor

    @classmethod
    def of(cls, name: str, gradients: Tensor) -> Self:
        """Return one parameter's gradients [n, ...]: a view where there are no gaps in memory."""
        order = sorted(range(gradients.ndim - 1), key=lambda i: -gradients.stride(i + 1))
        ordered = gradients.permute(0, *(i + 1 for i in order))
        columns = _Columns(name, ordered.shape[1:], [order.index(i) for i in range(len(order))])
        return cls([columns], ordered.reshape(len(gradients), -1))

    def squared_norms(self) -> Tensor:
        """Return the records' squared L2 norms, float64 [n]."""
        norms = [
            torch.linalg.vector_norm(block_nm, dim=1, dtype=torch.float64)
            for block_nm in self.numbers_nm.split(self._rows())
        ]
        return torch.cat(norms).square()

    def add(self, sums: Mapping[str, Tensor], factors: Tensor) -> None:
        """Add the gradients times `clip_factors` to their parameters' sums, in place."""
        rows = self._rows()
        blocks = zip(self.numbers_nm.split(rows), factors.split(rows), strict=True)
        total_m, *others = (sum_clipped(block_nm, weights) for block_nm, weights in blocks)
        for other_m in others:
            total_m += other_m
        parts = total_m.split([column.shape.numel() for column in self.columns])
        for column, part_m in zip(self.columns, parts, strict=True):
            sums[column.name] += part_m.reshape(column.shape).permute(column.places)

    def _rows(self) -> int:
        """Return how many records make a block."""
        if self.numbers_nm.device.type != "cpu":
            return len(self.numbers_nm)
        return max(1, _BLOCK // max(1, self.numbers_nm.shape[1]))


def _matrices(gradients: Mapping[str, Tensor]) -> list[GradientMatrix]:
    """Return every large parameter's gradients by themselves and the small ones' together."""
    matrices = [GradientMatrix.of(name, gradient) for name, gradient in gradients.items()]
    large = [matrix for matrix in matrices if matrix.numbers_nm.numel() >= _BLOCK]
    small = [matrix for matrix in matrices if matrix.numbers_nm.numel() < _BLOCK]
    if not small:
        return large
    # A call costs more than the work it does for a bias.
    columns = [column for matrix in small for column in matrix.columns]
    numbers_nm = torch.cat([matrix.numbers_nm for matrix in small], dim=1)
    return [*large, GradientMatrix(columns, numbers_nm)]
