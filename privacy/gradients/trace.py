"""Per-record gradients written down as a graph of tensor operations, forwards and backwards.

What was done once, with whatever Python around it, becomes a function of tensors alone: of the
model's parameters and buffers and of a micro-batch. A compiler can work on that.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from privacy.gradients.base import RecordLoss
from privacy.gradients.per_record import OfRecords, gradients


class NotTraceable(Exception):
    """The work reads a tensor that it was not given, whose value would be taken for a constant."""


@dataclass(frozen=True)
class Trace:
    """Gradients of as many records, of the same shapes, as it was traced with.

    Attributes:
        graph: takes `state` and then the records, and returns losses and gradients.
        state: the model's parameters and buffers, in the memory where the model has them: what
            changes there in place is seen.
        names: of the parameters whose gradients it returns, in their order.
    """

    graph: Any
    state: tuple[Tensor, ...]
    names: tuple[str, ...]

    def __call__(self, *records: Tensor) -> OfRecords:
        """Return losses [B] and gradients [B, ...] by parameter."""
        with torch.no_grad():
            losses, *found = self.graph(*self.state, *records)
        return losses, dict(zip(self.names, found, strict=True))


def trace(model: nn.Module, loss: RecordLoss, records: tuple[Tensor, ...]) -> Trace:
    """Write down what `gradients` does to records like these; whose values have no influence.

    Raises:
        NotTraceable: the model or the loss holds a tensor that is neither parameter nor buffer.
    """
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    names: tuple[str, ...] = ()

    def of_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
        nonlocal names
        state = dict(zip(named, tensors, strict=False))
        losses, found = gradients(model, loss, tensors[len(named) :], instead=state)
        names = tuple(found)
        return losses, *found.values()

    state = tuple(tensor.detach() for tensor in named.values())
    graph = make_fx(of_tensors)(*state, *records)
    _require_no_constants(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return Trace(graph, state, names)


def _require_no_constants(graph: GraphModule) -> None:
    constants = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    if constants:
        raise NotTraceable(
            f"{len(constants)} tensors are read that are neither parameters nor buffers of the "
            "model; register them as buffers"
        )
