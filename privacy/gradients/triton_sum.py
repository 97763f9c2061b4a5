"""The sum of clipped gradients as one kernel: every number is read once, and no copy is made.

By torch's operations a GPU would write and read a float64 copy of all per-record gradients, nine
times the traffic. Only `fused_sum` imports this file, as Triton comes with torch's builds for GPUs
alone.

Shapes: n records, m numbers of a record.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 8, 128  # that a program holds at a time


# The number of records is private: a kernel made for it would stay in Triton's cache on disk.
@triton.jit(do_not_specialize=["n"])
def _sum(  # type: ignore[no-untyped-def]  # Triton reads annotations in its own way
    vectors_nm,
    factors_n,
    total_m,
    n,
    m,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float64)
    for first in range(0, n, ROWS):
        rows = first + tl.arange(0, ROWS).to(tl.int64)
        factors = tl.load(factors_n + rows, mask=rows < n, other=0.0)[:, None]
        inside = (rows[:, None] < n) & (columns[None, :] < m)
        numbers = tl.load(vectors_nm + rows[:, None] * m + columns[None, :], mask=inside, other=0.0)
        # Left out, and not multiplied by zero: 0 times NaN is NaN.
        added = tl.where(factors == 0.0, 0.0, numbers.to(tl.float64) * factors)
        total += tl.sum(added, axis=0)
    tl.store(total_m + columns, total, mask=columns < m)


def triton_sum(vectors_nm: Tensor, factors_n: Tensor) -> Tensor:
    """Return sum_i factor_i vector_i in float64 [m], leaving out records whose factor is 0.

    Args:
        vectors_nm: any float type.
        factors_n: float64.
    """
    n, m = vectors_nm.shape
    total_m = torch.empty(m, dtype=torch.float64, device=vectors_nm.device)
    if m > 0:
        grid = (triton.cdiv(m, _COLUMNS),)
        _sum[grid](vectors_nm.contiguous(), factors_n.contiguous(), total_m, n, m, _ROWS, _COLUMNS)
    return total_m
