"""Gradients of many records in one backward pass, layer by layer.

Every trainable parameter enters as B views of itself, one for a record, so that what autograd
brings back for them are per-record gradients, whatever the layer. Where a layer has a rule its
views are known to be one weight, and it runs at nearly the price of an ordinary layer.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from privacy.gradients.base import RecordLoss, require_scalar, trainable
from privacy.gradients.grad_samplers import RULES, batched_apply
from privacy.gradients.grad_samplers.base import concatenated

Take = Callable[[str, Tensor], None]
OfRecords = tuple[Tensor, dict[str, Tensor]]  # losses [B], and gradients [B, ...] by parameter


def gradients(
    model: nn.Module,
    loss: RecordLoss,
    records: tuple[Tensor, ...],
    instead: Mapping[str, Tensor] | None = None,
) -> OfRecords:
    """Return the records' losses and all of their gradients; see `backward`."""
    found: dict[str, Tensor] = {}
    losses = backward(model, loss, records, found.__setitem__, instead)
    return losses, found


def backward(
    model: nn.Module,
    loss: RecordLoss,
    records: tuple[Tensor, ...],
    take: Take,
    instead: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Hand every parameter's per-record gradients to `take`, and return the records' losses.

    `take(name, gradients [B, ...])` is called once for a parameter, as soon as its gradients are
    complete, from the last layer to the first. They are not kept: what `take` does not hold is
    free again, so that at no time need more than one layer's be in memory. A parameter that the
    loss does not depend on is left out; its gradients are zero.

    Args:
        model: network; neither it nor its `.grad`s are changed.
        loss: loss of one record.
        records: tensors with the same leading dimension B.
        take: what to do with the gradients.
        instead: tensors to compute with in place of the model's parameters and buffers.

    Returns:
        The losses [B].

    Raises:
        InvalidRequest: the loss is not a scalar.
    """
    B, trained, given = len(records[0]), trainable(model), dict(instead or {})
    views = {
        name: given.pop(name, p).detach().expand(B, *p.shape).requires_grad_()
        for name, p in trained.items()
    }
    for name, view in views.items():
        view.register_hook(_handing_over(name, take))

    def of_one(parameters: dict[str, Tensor], *record: Tensor) -> Tensor:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            return functional_call(model, {**given, **parameters}, args, kwargs)

        with _ByRule(parameters.values()):
            return require_scalar(loss(call, *record))

    # The fused attention kernels' backward passes cannot be batched.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        losses = vmap(of_one, randomness="different")(views, *records)
        if losses.requires_grad:
            torch.autograd.grad(losses.sum(), list(views.values()), allow_unused=True)
    return losses.detach()


def _handing_over(name: str, take: Take) -> Callable[[Tensor], Tensor]:
    def hand_over(gradients: Tensor) -> Tensor:
        take(name, gradients.detach())
        # What autograd keeps until its end instead of the gradients takes no memory.
        return gradients.new_zeros(()).expand_as(gradients)

    return hand_over


class _ByRule(TorchFunctionMode):
    """Runs those layers by their rule whose weights are all trained."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._trained = {id(parameter) for parameter in parameters}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.cat and not {"axis", "out"} & set(kwargs or {}):
            return concatenated(*args, **(kwargs or {}))
        rule = RULES.get(func)
        bound = rule.bind(*args, **(kwargs or {})) if rule else None
        if rule and bound and self._all_trained(bound[1:]):
            return batched_apply(rule.operation, bound)
        return func(*args, **(kwargs or {}))

    def _all_trained(self, weights: tuple[Any, ...]) -> bool:
        return all(id(w) in self._trained for w in weights if isinstance(w, Tensor))
