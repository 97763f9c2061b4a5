"""Clipping: no record may move a sum by more than the clip norm C, whatever it holds."""

import torch
from torch import Tensor

from privacy.validation import positive_number

# Norm, quotient and product are each rounded in float64. This much less than C pays for all of
# them, so that a clipped float64 vector stays within C itself and not just near it.
_ROUNDING = 2.0**-40


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
    """
    C = positive_number("the clip norm", clip_norm)
    norms = norms.to(torch.float64)
    factors = (C / (norms * (1.0 + _ROUNDING))).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, 0.0)


def sum_clipped(vectors: Tensor, factors: Tensor) -> Tensor:
    """Return the sum over records of factor times vector, in float64.

    Args:
        vectors: [n, ...] one vector for a record, any float type.
        factors: float64 [n] from `clip_factors`; a record whose factor is 0 is left out even if
            its vector holds NaN or infinities.

    Returns:
        float64 [...].
    """
    numbers = _left_out(vectors.to(torch.float64), factors.reshape(-1, *[1] * (vectors.ndim - 1)))
    return torch.tensordot(factors, numbers, dims=1)


def add_clipped_vector(total: Tensor, vector: Tensor, factor: Tensor) -> None:
    """Add factor times vector to a total in place, as `sum_clipped` of one record would be added.

    Args:
        total: float64 [...].
        vector: float64 [...] of the record.
        factor: float64 [] from `clip_factors`; 0 leaves the vector out whatever it holds.
    """
    total.addcmul_(_left_out(vector, factor), factor)


def _left_out(numbers: Tensor, factors: Tensor) -> Tensor:
    """Return numbers with zeros where their factor is zero."""
    left_out = factors == 0
    # Where there is none to leave out, which is nearly always, nothing need be copied for it; but
    # to ask a GPU is to wait for it.
    if numbers.device.type != "cpu" or left_out.any():
        return numbers.masked_fill(left_out, 0.0)
    return numbers
