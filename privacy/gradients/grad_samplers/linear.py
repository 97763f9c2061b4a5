"""Linear layers and embeddings.

Linear, y = x W^T + b: a record's gradient of W is sum_p g_p x_p^T over its positions p, and of b
sum_p g_p. Embedding: a record's gradient of the table is what arrives, added at the rows looked up.

Shapes: B records, P positions or look-ups of a record, I features in, O out, E of an embedding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from privacy.gradients.grad_samplers.base import Rule, shared


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


class _Embedding(Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index, weight)
        return torch.nn.functional.embedding(index, weight[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        index, weight = ctx.saved_tensors
        B, E = len(index), weight.shape[-1]
        g_BPE = grad_outputs[0].reshape(B, -1, E).to(weight.dtype)
        rows = index.reshape(B, -1, 1).expand(-1, -1, E)
        return None, torch.zeros_like(weight, memory_format=torch.contiguous_format).scatter_add(
            1, rows, g_BPE
        )


def _bind_embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> tuple[Any, ...] | None:
    plain = padding_idx is None and max_norm is None
    return (input, weight) if plain and not (scale_grad_by_freq or sparse) else None


EMBEDDING = Rule(_Embedding, _bind_embedding)
