"""Which function sums clipped gradients on a device: one kernel, or torch's operations."""

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from privacy.clipping import sum_clipped

Sum = Callable[[Tensor, Tensor], Tensor]


@cache
def fused_sum(device: torch.device) -> Sum:
    """Return `sum_clipped` for matrices [n, m] on `device`, as one kernel where it has one.

    The kernel is tried first, on numbers of its own, and taken if it gives what torch's operations
    give. Where it cannot run, for want of Triton or of a C compiler, the others serve and a
    warning says so: they are slower and no less right.
    """
    if device.type != "cuda":
        return sum_clipped
    try:
        from privacy.gradients.triton_sum import triton_sum
    except ImportError as error:
        return _instead(f"Triton is missing ({error})")
    try:
        sound = gives_the_same(triton_sum, device)
    except Exception as error:  # a compiler may fail in any way
        return _instead(f"Triton failed with {type(error).__name__}")
    return triton_sum if sound else _instead("Triton's kernel gave another sum")


def gives_the_same(candidate: Sum, device: torch.device) -> bool:
    """Say whether a sum is that of `sum_clipped`, also where records are not finite or left out."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(37, generator=generator, dtype=torch.float64)
    factors[[1, 8]] = 0.0
    for width in (1, 128, 1000):
        vectors = torch.randn(37, width, generator=generator)
        vectors[1], vectors[8] = torch.nan, torch.inf
        expected = sum_clipped(vectors, factors)
        found = candidate(vectors.to(device), factors.to(device)).cpu()
        if found.dtype != torch.float64 or not torch.allclose(found, expected, 1e-12, 1e-12):
            return False
    return True


def _instead(reason: str) -> Sum:
    warnings.warn(
        f"clipped gradients are summed by torch's operations: {reason}",
        RuntimeWarning,
        stacklevel=3,
    )
    return sum_clipped
