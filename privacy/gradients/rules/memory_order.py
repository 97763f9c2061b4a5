"""The order of feature maps in memory: channels last.

The channels of one pixel lie together, so that the products and sums over pixels, of which
per-record gradients are made, read runs of numbers and need no transposed copy, and a GPU's matrix
units take convolutions as they are. The other layers keep the order in which a convolution hands
its result on.
"""

import torch
from torch import Tensor


def in_order(x_NCHW: Tensor) -> Tensor:
    """Return `x_NCHW` itself or a copy with the channels last in memory."""
    return x_NCHW.contiguous(memory_format=torch.channels_last)


def concatenated(tensors: tuple[Tensor, ...] | list[Tensor], dim: int = 0) -> Tensor:
    """Return `torch.cat(tensors, dim)`, which alone would not keep channels last."""
    if dim == 1 and all(t.ndim == 4 and t.stride(1) == 1 for t in tensors):
        return torch.cat([t.movedim(1, -1) for t in tensors], dim=-1).movedim(-1, 1)
    return torch.cat(tensors, dim)
