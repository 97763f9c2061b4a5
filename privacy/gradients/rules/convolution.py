"""Convolution: one pass over all views of all records, and a weight gradient for each record.

The weight gradient of all records together, which an ordinary backward pass would form, is not
computed.

Shapes: B records, K views, C channels in, D channels out, H and W pixels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from privacy.gradients.rules.base import Rule, shared
from privacy.gradients.rules.memory_order import in_order
from privacy.gradients.rules.weight_gradient import (
    OF_INPUT,
    Pair,
    Where,
    convolution_backward,
    weight_gradient,
)


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
        x = in_order(x_BKCHW.flatten(0, 1))
        y = in_order(torch.conv2d(x, weight[0], shared(bias), stride, padding, dilation))
        ctx.save_for_backward(x.to(y.dtype), weight)
        ctx.where, ctx.dtype = (stride, padding, dilation), x_BKCHW.dtype
        return y.unflatten(0, x_BKCHW.shape[:2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        g_BKDHW = grad_outputs[0]
        records = g_BKDHW.shape[:2]
        g, (x, weight) = in_order(g_BKDHW.flatten(0, 1)), ctx.saved_tensors
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
