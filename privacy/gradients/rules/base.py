"""What a rule is: one layer type run for many records under the one weight that they share.

To vmap a weight that is differentiated record by record is as many weights as there are records,
and it computes with all of them. A rule knows that they are one: the layer runs once over all views
of all records, and only the weight's gradient is formed record by record.

Shapes: B records, K views; a weight arrives as B views of itself (stride 0).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd import Function


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


class OverRecords(Function):
    """Under vmap, applies a rule's operation to all records at once."""

    @staticmethod
    def forward(operation: type[Function], *args: Any) -> Tensor:
        """Refuse to run outside of vmap, where there are no records."""
        raise RuntimeError("a rule for many records was applied outside of vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save nothing: the operation saves what it needs."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], operation: type[Function], *args: Any
    ) -> tuple[Tensor, int]:
        """Bring the records to the front of every tensor and apply the operation."""
        dims = in_dims[1:]
        moved = [_in_front(a, d, info.batch_size) for a, d in zip(args, dims, strict=True)]
        return operation.apply(*moved), 0


def _in_front(arg: Any, dim: int | None, records: int) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    return arg.expand(records, *arg.shape) if dim is None else arg.movedim(dim, 0)


def shared(weight: Tensor | None) -> Tensor | None:
    """Return the one weight that [B, ...] views of it show."""
    return None if weight is None else weight[0]
