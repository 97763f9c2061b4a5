"""Rules for layers: one pass over all records, and a weight gradient for each record.

`vmap` would treat a weight that is differentiated record by record as B weights, and compute with
all of them. A rule runs the layer once under the one weight that all records share, and forms only
the weight's gradient record by record. A layer without a rule is left to vmap.

Shapes: B records, K views, N = B K, P positions or look-ups of a record; H, W pixels, L = H W;
C channels in, D out, of a convolution; I features in, O out, of a linear layer; E numbers of an
embedding. A weight arrives as B views of itself (stride 0).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

Pair = tuple[int, int]
Where = tuple[Pair, Pair, Pair]  # stride, padding, dilation
Gradients = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Rule:
    """One layer type.

    Attributes:
        operation: the layer for B records at once. Its `forward` gets every tensor with the
            records in front, weights included; its `backward` returns a weight's gradient as
            [B, ...]. Under autocast, the type of its output is the one it computes in.
        bind: takes the torch function's arguments for one record and returns the operation's, the
            input first; or None where the rule does not apply.
    """

    operation: type[Function]
    bind: Callable[..., tuple[Any, ...] | None]


def batched_apply(operation: type[Function], args: tuple[Any, ...]) -> Tensor:
    """Apply a rule's operation to all records at once; raise RuntimeError outside of vmap."""
    output: Tensor = _AllRecords.apply(operation, *args)
    return output


class _AllRecords(Function):
    """Turns a call for one record, under vmap, into one call of an operation for all of them."""

    @staticmethod
    def forward(operation: type[Function], *args: Any) -> Tensor:
        raise RuntimeError("a rule for many records was applied outside of vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], operation: type[Function], *args: Any
    ) -> tuple[Tensor, int]:
        def records_in_front(arg: Any, dim: int | None) -> Any:
            if not isinstance(arg, Tensor):
                return arg
            return arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)

        return operation.apply(*map(records_in_front, args, in_dims[1:])), 0


def concatenated(tensors: tuple[Tensor, ...] | list[Tensor], dim: int = 0) -> Tensor:
    """Return `torch.cat(tensors, dim)`, which alone would not keep channels last."""
    if dim == 1 and all(t.ndim == 4 and t.stride(1) == 1 for t in tensors):
        return torch.cat([t.movedim(1, -1) for t in tensors], dim=-1).movedim(-1, 1)
    return torch.cat(tensors, dim)


# Convolution.

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
    if weight[2:] == (1, 1) and where[:2] == ((1, 1), (0, 0)):
        # Views of [B, K H W, ...], where channels are last in memory.
        g_BPD, x_BPC = (maps.movedim(2, -1).flatten(1, 3) for maps in (g_BKDHW, x_BKCHW))
        return (g_BPD.mT @ x_BPC).reshape(-1, *weight)
    if g_BKDHW.device.type != "cpu":
        return grouped(g_BKDHW, x_BKCHW, weight, where)
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

    def side_by_side(maps: Tensor) -> Tensor:
        # [K, B C, H, W] with the channels last in memory, for which kernels are fastest.
        B, K, C, H, W = maps.shape
        return maps.permute(1, 3, 4, 0, 2).reshape(K, H, W, B * C).permute(0, 3, 1, 2)

    B, D = len(g_BKDHW), weight[0]
    # Only its shape and layout matter.
    any_weight = torch.empty_like(
        g_BKDHW.new_empty(()).expand(B * D, *weight[1:]), memory_format=torch.channels_last
    )
    sides = side_by_side(g_BKDHW), side_by_side(x_BKCHW)
    of_weight = _convolution_backward(*sides, any_weight, where, B, [False, True, False])[1]
    return of_weight.unflatten(0, (B, D))


def _convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, where: Where, groups: int, wanted: list[bool]
) -> tuple[Tensor, ...]:
    """Return those `wanted` of the gradients of input, weight and bias."""
    gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        g, x, weight, None, *where, False, (0, 0), groups, wanted
    )
    return gradients


def _channels_last(x_NCHW: Tensor) -> Tensor:
    return x_NCHW.contiguous(memory_format=torch.channels_last)


class _Convolution(Function):
    @staticmethod
    def forward(
        ctx: Any, x_BKCHW: Tensor, weight: Tensor, bias: Tensor | None, *where: Pair
    ) -> Tensor:
        x, one_bias = _channels_last(x_BKCHW.flatten(0, 1)), None if bias is None else bias[0]
        stride, padding, dilation = where
        y = _channels_last(torch.conv2d(x, weight[0], one_bias, stride, padding, dilation))
        ctx.save_for_backward(x.to(y.dtype), weight)
        ctx.where, ctx.dtype = where, x_BKCHW.dtype
        return y.unflatten(0, x_BKCHW.shape[:2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Gradients:
        records, (x, weight) = grad_outputs[0].shape[:2], ctx.saved_tensors
        g = _channels_last(grad_outputs[0].flatten(0, 1))
        g_BKDHW, x_BKCHW = g.unflatten(0, records), x.unflatten(0, records)
        of_x = of_weight = of_bias = None
        # The weight gradient of all records together is not asked for: nobody needs it.
        if ctx.needs_input_grad[0]:
            one_weight, of_input = weight[0].to(g.dtype), [True, False, False]
            of_x = _convolution_backward(g, x, one_weight, ctx.where, 1, of_input)[0]
            of_x = of_x.unflatten(0, records).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(g_BKDHW, x_BKCHW, weight.shape[1:], ctx.where)
            of_weight = of_weight.to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = g_BKDHW.sum((1, 3, 4), dtype=weight.dtype)
        return of_x, of_weight, of_bias, None, None, None


def _bind_convolution(
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
    return input, weight, bias, *map(_pair, (stride, padding, dilation))


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class _GroupNorm(Function):
    """Group normalisation, by two sums a view and channel.

    y = z weight + bias with z = (x - mean) rstd, so a view's gradient of the scale is sum_l g z,
    and of the shift sum_l g. Their sums over a group's channels, times weight, are also all that
    the gradient of x needs besides g and x:
    rstd (g weight - (sum_cl g weight + z sum_cl g weight z) / M), over M numbers of the group.
    """

    # Plain sums over pixels, since torch's own kernels are slow where channels are last in memory.

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
        return _like(torch.addcmul(shift_NC[:, None], x_NLC, scale_NC[:, None]), x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Gradients:
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
        of_scale, of_shift = (
            t.unflatten(0, g.shape[:2]).sum(1) for t in (of_scale_NC, of_shift_NC)
        )
        return _like(of_x_NLC, g.shape).to(ctx.dtype), of_scale, of_shift, None, None


def _mean_of_group(x_NLC: Tensor, groups: int) -> Tensor:
    """Return [C, C], which turns channels' sums over pixels into the mean over each one's group."""
    L, C = x_NLC.shape[1:]
    one_group = x_NLC.new_ones(C // groups, C // groups)
    same_CC = torch.kron(torch.eye(groups, dtype=x_NLC.dtype, device=x_NLC.device), one_group)
    return same_CC / (L * C // groups)


def _like(y_NLC: Tensor, shape: torch.Size) -> Tensor:
    """Return [B, K, C, ...] as a view."""
    B, K, C, *pixels = shape
    return y_NLC.reshape(B, K, *pixels, C).movedim(-1, 2)


def _bind_group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Any, ...] | None:
    if weight is None or bias is None or input.ndim < 3:
        return None
    return input, weight, bias, num_groups, eps


class _Linear(Function):
    """y = x W^T + b: the gradient of W is sum_p g_p x_p^T over a record's positions p."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = functional.linear(x, weight[0], None if bias is None else bias[0])
        ctx.save_for_backward(x.to(y.dtype), weight)
        ctx.dtype = x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Gradients:
        (g,), (x, weight) = grad_outputs, ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        g_BPO, x_BPI = (t.reshape(len(t), -1, t.shape[-1]) for t in (g, x))
        return (
            (g @ weight[0].to(g.dtype)).to(ctx.dtype) if of_x else None,
            (g_BPO.mT @ x_BPI).to(weight.dtype) if of_weight else None,
            g_BPO.sum(1, dtype=weight.dtype) if of_bias else None,
        )


class _Embedding(Function):
    """The gradient of the table is what arrives, added at the rows that were looked up."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index, weight)
        return functional.embedding(index, weight[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Gradients:
        index, weight = ctx.saved_tensors
        B, E = len(index), weight.shape[-1]
        g_BPE = grad_outputs[0].reshape(B, -1, E).to(weight.dtype)
        rows = index.reshape(B, -1, 1).expand(-1, -1, E)
        zeros = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        return None, zeros.scatter_add(1, rows, g_BPE)


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


RULES: dict[Callable[..., Any], Rule] = {
    functional.conv2d: Rule(_Convolution, _bind_convolution),
    functional.embedding: Rule(_Embedding, _bind_embedding),
    functional.group_norm: Rule(_GroupNorm, _bind_group_norm),
    functional.linear: Rule(_Linear, lambda input, weight, bias=None: (input, weight, bias)),
}
