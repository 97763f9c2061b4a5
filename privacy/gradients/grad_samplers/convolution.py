"""Convolution: one pass over all views of all records, and a weight gradient for each record.

The weight gradient of all records together, which an ordinary backward pass would form, is not
computed.

Shapes: B records, K views, C channels in, D channels out, H and W pixels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from privacy.gradients.grad_samplers.base import Rule, channels_last, shared

Pair = tuple[int, int]
Where = tuple[Pair, Pair, Pair]  # stride, padding, dilation

OF_INPUT = [True, False, False]
OF_WEIGHT = [False, True, False]

# Numbers of one view's map that lie side by side in one grouped convolution on a CPU: with more,
# the pixels of a record lie so far apart in memory that its cache holds few of them. A large record
# goes by itself.
_SIDE_BY_SIDE = 2**14


def weight_gradient(g_BKDHW: Tensor, x_BKCHW: Tensor, weight: torch.Size, where: Where) -> Tensor:
    """Return every record's weight gradient [B, D, C, h, w].

    Args:
        g_BKDHW: gradient of the convolution's output.
        x_BKCHW: its input, in the same type.
        weight: its shape [D, C, h, w].
        where: stride, padding and dilation.
    """
    stride, padding, _ = where
    if weight[2:] == (1, 1) and (stride, padding) == ((1, 1), (0, 0)):
        return (_positions(g_BKDHW).mT @ _positions(x_BKCHW)).reshape(-1, *weight)
    if g_BKDHW.device.type == "cpu":
        return _in_parts(g_BKDHW, x_BKCHW, weight, where)
    return grouped(g_BKDHW, x_BKCHW, weight, where)


def _in_parts(g_BKDHW: Tensor, x_BKCHW: Tensor, weight: torch.Size, where: Where) -> Tensor:
    """Return [B, D, C, h, w] by a few records in each grouped convolution."""
    of_view = max(weight[:2]) * x_BKCHW.shape[3] * x_BKCHW.shape[4]
    records = max(1, _SIDE_BY_SIDE // of_view)
    parts = [
        grouped(g, x, weight, where)
        for g, x in zip(g_BKDHW.split(records), x_BKCHW.split(records), strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    # In the order in which they lie in memory.
    return torch.cat([part.movedim(2, -1) for part in parts]).movedim(-1, 2)


def grouped(g_BKDHW: Tensor, x_BKCHW: Tensor, weight: torch.Size, where: Where) -> Tensor:
    """Return [B, D, C, h, w] by the backward pass of one convolution in B groups."""
    B, D = len(g_BKDHW), weight[0]
    # Only its shape and layout matter.
    any_weight = torch.empty(
        (B * D, *weight[1:]),
        dtype=g_BKDHW.dtype,
        device=g_BKDHW.device,
        memory_format=torch.channels_last,
    )
    sides = _side_by_side(g_BKDHW), _side_by_side(x_BKCHW)
    return convolution_backward(*sides, any_weight, where, B, OF_WEIGHT)[1].unflatten(0, (B, D))


def _positions(x_BKCHW: Tensor) -> Tensor:
    """Return [B, K H W, C]: a view, where channels are last in memory."""
    return x_BKCHW.movedim(2, -1).flatten(1, 3)


def _side_by_side(x_BKCHW: Tensor) -> Tensor:
    """Return [K, B C, H, W] with the channels last in memory, for which kernels are fastest."""
    B, K, C, H, W = x_BKCHW.shape
    return x_BKCHW.permute(1, 3, 4, 0, 2).reshape(K, H, W, B * C).permute(0, 3, 1, 2)


def convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, where: Where, groups: int, wanted: list[bool]
) -> tuple[Tensor, ...]:
    """Return what is `wanted` of the gradients of input, weight and bias: torch's own kernels."""
    gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        g, x, weight, None, *where, False, (0, 0), groups, wanted
    )
    return gradients


class _Convolution(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BKCHW: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
    ) -> Tensor:
        x = channels_last(x_BKCHW.flatten(0, 1))
        y = channels_last(torch.conv2d(x, weight[0], shared(bias), stride, padding, dilation))
        ctx.save_for_backward(x.to(y.dtype), weight)
        ctx.where, ctx.dtype = (stride, padding, dilation), x_BKCHW.dtype
        return y.unflatten(0, x_BKCHW.shape[:2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        g_BKDHW = grad_outputs[0]
        records = g_BKDHW.shape[:2]
        g, (x, weight) = channels_last(g_BKDHW.flatten(0, 1)), ctx.saved_tensors
        g_BKDHW, x_BKCHW = g.unflatten(0, records), x.unflatten(0, records)
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        return (
            _of_input(g, x, weight[0], ctx.where).unflatten(0, records).to(ctx.dtype)
            if of_x
            else None,
            weight_gradient(g_BKDHW, x_BKCHW, weight.shape[1:], ctx.where).to(weight.dtype)
            if of_weight
            else None,
            g_BKDHW.sum((1, 3, 4), dtype=weight.dtype) if of_bias else None,
            *[None] * 3,
        )


def _of_input(g: Tensor, x: Tensor, weight: Tensor, where: Where) -> Tensor:
    return convolution_backward(g, x, weight.to(g.dtype), where, 1, OF_INPUT)[0]


def _bind(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> tuple[Any, ...] | None:
    if input.ndim != 4 or groups != 1 or isinstance(padding, str):
        return None
    return input, weight, bias, _pair(stride), _pair(padding), _pair(dilation)


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


CONVOLUTION = Rule(_Convolution, _bind)
