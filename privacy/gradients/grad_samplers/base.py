"""What a rule is: one layer type run for many records under the one weight that they share.

To vmap a weight that is differentiated record by record is as many weights as there are records,
and it computes with all of them. A rule knows that they are one: the layer runs once over all views
of all records, and only the weight's gradient is formed record by record.

Shapes: B records, K views; a weight arrives as B views of itself (stride 0).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import _add_batch_dim, _unwrap_batched, maybe_current_level
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import Function


def in_order(x_NCHW: Tensor) -> Tensor:
    """Return `x_NCHW` itself or a copy with the channels last in memory."""
    return x_NCHW.contiguous(memory_format=torch.channels_last)


def concatenated(tensors: tuple[Tensor, ...] | list[Tensor], dim: int = 0) -> Tensor:
    """Return `torch.cat(tensors, dim)`, which alone would not keep channels last."""
    if dim == 1 and all(t.ndim == 4 and t.stride(1) == 1 for t in tensors):
        return torch.cat([t.movedim(1, -1) for t in tensors], dim=-1).movedim(-1, 1)
    return torch.cat(tensors, dim)


@dataclass(frozen=True)
class Rule:
    """One layer type.

    Attributes:
        operation: the layer for B records at once. Its `forward` gets every tensor with the
            records in front, weights included; its `backward` returns a weight's gradient as
            [B, ...], which is a gradient for every record. It may run under autocast: what it
            computes in is the type of its output.
        bind: takes the torch function's arguments, as one record gives them, and returns the
            operation's, the input first; or None where the rule does not hold for them, and vmap
            does what it always does, which is right but slow.
    """

    operation: type[Function]
    bind: Callable[..., tuple[Any, ...] | None]


def batched_apply(operation: type[Function], args: tuple[Any, ...]) -> Tensor:
    """Under vmap, apply a rule's operation to all records at once.

    A `Function` with a `vmap` of its own would say the same, but torch.func then walks through
    trees and signatures at each call: for a network of 80 layers, a tenth of a step at 8x8.

    Args:
        operation: the rule's.
        args: what the rule's `bind` returned.

    Raises:
        RuntimeError: outside of vmap, where there are no records.
    """
    if maybe_current_level() is None:
        raise RuntimeError("a rule for many records was applied outside of vmap")
    interpreter = retrieve_current_functorch_interpreter()
    moved = [_in_front(arg, interpreter) for arg in args]
    with interpreter.lower():
        output = operation.apply(*moved)
    return _add_batch_dim(output, 0, interpreter.level())


def _in_front(arg: Any, interpreter: Any) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    tensor, dim = _unwrap_batched(arg, interpreter.level())
    if dim is None:
        return tensor.expand(interpreter.batch_size(), *tensor.shape)
    return tensor.movedim(dim, 0)


def shared(weight: Tensor | None) -> Tensor | None:
    """Return the one weight that [B, ...] views of it show."""
    return None if weight is None else weight[0]
