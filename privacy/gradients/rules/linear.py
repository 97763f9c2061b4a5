"""Linear layer: weight gradients of all records by one batched product.

Shapes: B records, P positions of a record (its views, tokens, ...), I features in, O features out.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from privacy.gradients.rules.base import Rule, shared


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.nn.functional.linear(x, weight[0], shared(bias))
        ctx.save_for_backward(x.to(y.dtype), weight)
        ctx.dtype = x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grad_outputs
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        g_BPO, x_BPI = _positions(g), _positions(x)
        return (
            (g @ weight[0].to(g.dtype)).to(ctx.dtype) if of_x else None,
            (g_BPO.mT @ x_BPI).to(weight.dtype) if of_weight else None,
            g_BPO.sum(1, dtype=weight.dtype) if of_bias else None,
        )


def _positions(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1, x.shape[-1])


def _bind(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> tuple[Any, ...]:
    return input, weight, bias


LINEAR = Rule(_Linear, _bind)
