"""The contract of a rule: one layer type run for many records under the one weight they share.

`vmap` would treat a weight that is differentiated record by record as B weights, and compute with
all of them. A rule runs the layer once over all views of all records, and forms only the weight's
gradient record by record.

Shapes: B records, K views; a weight arrives as B views of itself (stride 0).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True)
class Rule:
    """One layer type.

    Attributes:
        operation: the layer for B records at once. Its `forward` gets every tensor with the
            records in front, weights included; its `backward` returns a weight's gradient as
            [B, ...], one for every record. It may run under autocast: the type of its output is
            the one it computes in.
        bind: takes the torch function's arguments for one record and returns the operation's, the
            input first; or None where the rule does not apply, and vmap computes the same, slowly.
    """

    operation: type[Function]
    bind: Callable[..., tuple[Any, ...] | None]


def batched_apply(operation: type[Function], args: tuple[Any, ...]) -> Tensor:
    """Apply a rule's operation to all records at once, under vmap.

    Args:
        operation: the rule's.
        args: what the rule's `bind` returned.

    Raises:
        RuntimeError: outside of vmap, where there are no records.
    """
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

        moved = [records_in_front(*pair) for pair in zip(args, in_dims[1:], strict=True)]
        return operation.apply(*moved), 0


def channels_last(x_NCHW: Tensor) -> Tensor:
    """Return `x_NCHW` itself or a copy with the channels last in memory."""
    return x_NCHW.contiguous(memory_format=torch.channels_last)


def concatenated(tensors: tuple[Tensor, ...] | list[Tensor], dim: int = 0) -> Tensor:
    """Return `torch.cat(tensors, dim)`, which alone would not keep channels last."""
    if dim == 1 and all(t.ndim == 4 and t.stride(1) == 1 for t in tensors):
        return torch.cat([t.movedim(1, -1) for t in tensors], dim=-1).movedim(-1, 1)
    return torch.cat(tensors, dim)


def shared(weight: Tensor | None) -> Tensor | None:
    """Return the one weight that [B, ...] views of it show."""
    return None if weight is None else weight[0]
