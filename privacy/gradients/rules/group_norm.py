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

from privacy.gradients.rules.base import Rule


class _GroupNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        x_NLC = x.to(weight.dtype).movedim(2, -1).flatten(2, -2).flatten(0, 1)
        M = x_NLC.shape[1] * x_NLC.shape[2] // groups
        mean_NG = _by_group(x_NLC.sum(1), groups) / M
        centred_NLC = x_NLC - _by_channel(mean_NG, weight)
        square_NG = _by_group(centred_NLC.square().sum(1), groups)
        rstd_NG = torch.rsqrt(square_NG / M + eps)
        y_NLC = torch.addcmul(bias[0], centred_NLC, _by_channel(rstd_NG, weight) * weight[0])
        # x, which others keep too, and not a copy less its mean.
        ctx.save_for_backward(x_NLC, weight, mean_NG, rstd_NG)
        ctx.dtype = x.dtype
        return _like(y_NLC, x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grad_outputs
        x_NLC, weight, mean_NG, rstd_NG = ctx.saved_tensors
        (N, L, C), G = x_NLC.shape, rstd_NG.shape[1]
        g_NLC = g.to(x_NLC.dtype).movedim(2, -1).reshape(N, L, C)
        mean_N1C, rstd_N1C = _by_channel(mean_NG, weight), _by_channel(rstd_NG, weight)
        shift_NC = g_NLC.sum(1)
        scale_NC = ((g_NLC * x_NLC).sum(1) - mean_N1C[:, 0] * shift_NC) * rstd_N1C[:, 0]
        M = L * C // G
        of_mean_NG = _by_group(shift_NC * weight[0], G) * (-rstd_NG / M)
        of_rstd_NG = _by_group(scale_NC * weight[0], G) * (-rstd_NG.square() / M)
        of_mean_NG -= mean_NG * of_rstd_NG
        of_x_NLC = torch.addcmul(
            _by_channel(of_mean_NG, weight), x_NLC, _by_channel(of_rstd_NG, weight)
        )
        of_x_NLC.addcmul_(g_NLC, rstd_N1C * weight[0])
        B, K = g.shape[:2]
        return (
            _like(of_x_NLC, g.shape).to(ctx.dtype),
            scale_NC.reshape(B, K, C).sum(1),
            shift_NC.reshape(B, K, C).sum(1),
            None,
            None,
        )


def _by_group(s_NC: Tensor, groups: int) -> Tensor:
    """Add up each group's channels: [N, G]."""
    return s_NC.unflatten(1, (groups, -1)).sum(2)


def _by_channel(s_NG: Tensor, weight: Tensor) -> Tensor:
    """Repeat each group's number for its channels: [N, 1, C]."""
    N, G = s_NG.shape
    return s_NG[:, :, None].expand(N, G, weight.shape[1] // G).reshape(N, 1, -1)


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
