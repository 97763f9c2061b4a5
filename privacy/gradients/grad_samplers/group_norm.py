"""Group normalisation: gradients of its scale and shift from two sums a view and channel.

y = z weight + bias with z = (x - mean) rstd, so a view's gradient of the scale is sum_l g z, and of
the shift sum_l g. Their sums over a group's channels, times weight, are also all that the gradient
of x needs besides g and x:
rstd (g weight - (sum_cl g weight + z sum_cl g weight z) / M), over M numbers of the group.
Plain sums over pixels, since torch's own kernels are slow where channels are last in memory.

Shapes: B records, K views, N = B K, L pixels, C channels, G groups.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from privacy.gradients.grad_samplers.base import Rule


class _GroupNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        x_NLC = x.to(weight.dtype).movedim(2, -1).flatten(2, -2).flatten(0, 1)
        mean_CC = _mean_of_group(x_NLC, groups)
        # Autocast would round the statistics.
        with torch.autocast(x.device.type, enabled=False):
            mean_NC = x_NLC.sum(1) @ mean_CC
            variance_NC = (x_NLC - mean_NC[:, None]).square_().sum(1) @ mean_CC
        rstd_NC = torch.rsqrt(variance_NC + eps)
        scale_NC = rstd_NC * weight[0]
        shift_NC = torch.addcmul(bias[0], mean_NC, scale_NC, value=-1)
        # x, which others keep too, and not a copy less its mean.
        ctx.save_for_backward(x_NLC, weight, mean_NC, rstd_NC, mean_CC)
        ctx.dtype = x.dtype
        y_NLC = torch.addcmul(shift_NC[:, None], x_NLC, scale_NC[:, None])
        return _like(y_NLC, x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grad_outputs
        x_NLC, weight, mean_NC, rstd_NC, mean_CC = ctx.saved_tensors
        g_NLC = g.to(x_NLC.dtype).movedim(2, -1).reshape(x_NLC.shape)
        gx_NLC = g_NLC * x_NLC
        of_shift_NC = g_NLC.sum(1)
        of_scale_NC = (gx_NLC.sum(1) - mean_NC * of_shift_NC) * rstd_NC
        along_x_NC = (of_scale_NC * weight[0]) @ mean_CC * -rstd_NC.square()
        constant_NC = (of_shift_NC * weight[0]) @ mean_CC * -rstd_NC
        constant_NC -= mean_NC * along_x_NC
        # Into memory at hand: this layer's time is that of going through feature maps.
        of_x_NLC = torch.addcmul(constant_NC[:, None], x_NLC, along_x_NC[:, None], out=gx_NLC)
        of_x_NLC.addcmul_(g_NLC, (rstd_NC * weight[0])[:, None])
        records = g.shape[:2]
        return (
            _like(of_x_NLC, g.shape).to(ctx.dtype),
            of_scale_NC.unflatten(0, records).sum(1),
            of_shift_NC.unflatten(0, records).sum(1),
            None,
            None,
        )


def _mean_of_group(x_NLC: Tensor, groups: int) -> Tensor:
    """Return [C, C], which turns channels' sums over pixels into the mean over each one's group."""
    L, C = x_NLC.shape[1:]
    same_CC = torch.eye(groups, dtype=x_NLC.dtype, device=x_NLC.device)
    for dim in (0, 1):
        same_CC = same_CC.repeat_interleave(C // groups, dim)
    return same_CC / (L * C // groups)


def _like(y_NLC: Tensor, shape: torch.Size) -> Tensor:
    """Return [B, K, C, ...] as a view."""
    B, K, C, *pixels = shape
    return y_NLC.reshape(B, K, *pixels, C).movedim(-1, 2)


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
