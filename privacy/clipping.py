"""Clipping: no record moves a sum by more than the clip norm C, whatever the record holds.

g_i is scaled by min(1, C / ||g_i||_2), with one norm over all of a record's coordinates, and then
summed (Abadi et al. 2016, algorithm 1). Norms and sums are float64 whatever the gradients are.

Shapes: n records, m numbers of a record.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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

    Args:
        norms: [n] L2 norms, one for a record over all its coordinates jointly.
        clip_norm: C, positive.

    Returns:
        float64 [n] on the same device. A vector times its factor has norm at most C if the norm
        is float64, and at most C (1 + 1e-6) if it is float32 rounded to nearest. The factor is 0
        where the norm is not finite; such a vector must be put to zero with `torch.where`, since
        0 times NaN is NaN (`sum_clipped` does so).

    Raises:
        InvalidRequest: if C is not a positive, finite number.

    >>> clip_factors(torch.tensor([0.5, 4.0, torch.inf]), 1.0)
    tensor([1.0000, 0.2500, 0.0000], dtype=torch.float64)
    """
    C = positive_number("the clip norm", clip_norm)
    norms = norms.to(torch.float64)
    factors = (C / (norms * (1.0 + _ROUNDING))).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, 0.0)


def sum_clipped(vectors: Tensor, factors: Tensor) -> Tensor:
    """Return sum_i factor_i vector_i in float64.

    Args:
        vectors: [n, ...] one vector for a record, any float type.
        factors: float64 [n] from `clip_factors`; a record whose factor is 0 is left out even if
            its vector holds NaN or infinities.

    Returns:
        float64 [...].

    >>> vectors = torch.tensor([[0.0, 0.5], [4.0, 0.0], [torch.inf, 0.0]])
    >>> sum_clipped(vectors, clip_factors(vectors.norm(dim=1), 1.0))
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    numbers = _left_out(vectors.to(torch.float64), factors.reshape(-1, *[1] * (vectors.ndim - 1)))
    return torch.tensordot(factors, numbers, dims=1)


def _left_out(numbers: Tensor, factors: Tensor) -> Tensor:
    """Return `numbers` with zeros where their factor is zero."""
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
    named = zip(parameters.items(), vector.split(sizes), strict=True)
    return vector, {name: part.as_strided(p.shape, _dense(p)) for (name, p), part in named}


def _dense(tensor: Tensor) -> tuple[int, ...]:
    # The tensor itself may have gaps; an empty one like it has none.
    return torch.empty_like(tensor, device="meta").stride()


def add_to(sums: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    """Add to each sum the part of its name, in place, in few launches on a GPU."""
    torch._foreach_add_(list(sums.values()), [parts[name] for name in sums])


class FlatSum:
    """The sum of gradients that come one record at a time, clipped and added as one vector.

    For records whose gradients exceed a processor's cache: memory is walked through once to form
    float64, once for the norm and once for the sum, in the order in which parameters lie there.

    Attributes:
        sums: float64 [...] by parameter.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """Begin with zero; gradients have the parameters' shapes and order of memory."""
        self._total, self.sums = zeros_in_one_piece(parameters)
        self._record, self._parts = zeros_in_one_piece(parameters)

    def add(self, gradients: Mapping[str, Tensor], clip_norm: float) -> None:
        """Clip one record's gradients, one [...] a parameter, jointly to C and add them."""
        torch._foreach_copy_(list(self._parts.values()), [gradients[n] for n in self._parts])
        norm = torch.linalg.vector_norm(self._record)
        add_clipped_vector(self._total, self._record, clip_factors(norm[None], clip_norm)[0])


def add_clipped_vector(total: Tensor, vector: Tensor, factor: Tensor) -> None:
    """Add factor times vector to a total in place, as `sum_clipped` of one record would be added.

    Args:
        total: float64 [...].
        vector: float64 [...] of the record.
        factor: float64 [] from `clip_factors`; 0 leaves the vector out whatever it holds.
    """
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
        present: bool [n], the rows that are records, all by default; the others add exactly
            nothing, whatever they hold.
    """
    matrices = list(_matrices(gradients))
    norms = torch.stack([_squared_norms(matrix.numbers_nm) for matrix in matrices]).sum(0).sqrt()
    factors = clip_factors(norms, clip_norm)
    if present is not None:
        factors = factors.masked_fill(~present, 0.0)
    for matrix in matrices:
        matrix.add(sums, factors)


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


@dataclass(frozen=True)
class _Matrix:
    """Gradients [n, m] of one or more parameters, whose columns follow one another."""

    columns: list[_Columns]
    numbers_nm: Tensor

    def add(self, sums: Mapping[str, Tensor], factors: Tensor) -> None:
        size = _rows(self.numbers_nm)
        blocks = zip(self.numbers_nm.split(size), factors.split(size), strict=True)
        total_m, *others = (sum_clipped(block_nm, weights) for block_nm, weights in blocks)
        for other_m in others:
            total_m += other_m
        parts = total_m.split([column.shape.numel() for column in self.columns])
        for column, part_m in zip(self.columns, parts, strict=True):
            sums[column.name] += part_m.reshape(column.shape).permute(column.places)


def _matrices(gradients: Mapping[str, Tensor]) -> Iterator[_Matrix]:
    """Yield every large parameter's gradients by themselves and the small ones' together.

    A call costs more than the work it does for a bias.
    """
    small: list[_Matrix] = []
    for name, gradient in gradients.items():
        matrix = _matrix(name, gradient)
        if gradient.numel() >= _BLOCK:
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
    return max(1, _BLOCK // max(1, numbers_nm.shape[1]))
