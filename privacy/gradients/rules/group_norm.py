"""Group normalisation: gradients of its scale and shift from two sums a view and channel.

y = (x - mean) rstd weight + bias, so a view's gradient of the scale is
rstd (sum_l g x - mean sum_l g), and of the shift sum_l g.

Shapes: B records, K views, N = B K, C channels, G groups, L pixels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from privacy.gradients.rules.base import Rule

_OF_INPUT = [True, False, False]


class _GroupNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        x_NCL = x.flatten(0, 1).flatten(2).contiguous().to(weight.dtype)
        N, C, L = x_NCL.shape
        y_NCL, mean_NG, rstd_NG = torch.native_group_norm(
            x_NCL, weight[0], bias[0], N, C, L, groups, eps
        )
        ctx.save_for_backward(x_NCL, weight, mean_NG, rstd_NG)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return y_NCL.reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_NCL, weight, mean_NG, rstd_NG = ctx.saved_tensors
        (N, C, L), G = x_NCL.shape, mean_NG.shape[1]
        g_NCL = grad_outputs[0].reshape(N, C, L).contiguous().to(x_NCL.dtype)
        of_x = torch.ops.aten.native_group_norm_backward(
            g_NCL, x_NCL, mean_NG, rstd_NG, weight[0], N, C, L, G, _OF_INPUT
        )[0]
        shift_NC = g_NCL.sum(2)
        product_NC = (g_NCL * x_NCL).sum(2)
        mean_NC, rstd_NC = (s.repeat_interleave(C // G, 1) for s in (mean_NG, rstd_NG))
        scale_NC = rstd_NC * (product_NC - mean_NC * shift_NC)
        B, K = ctx.shape[:2]
        return (
            of_x.reshape(ctx.shape).to(ctx.dtype),
            scale_NC.reshape(B, K, C).sum(1),
            shift_NC.reshape(B, K, C).sum(1),
            None,
            None,
        )


def _bind(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Any, ...] | None:
    if weight is None or bias is None or input.ndim < 3:
        return None
    return input, weight, bias, num_groups, eps


GROUP_NORM = Rule(_GroupNorm, _bind)
