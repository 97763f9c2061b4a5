"""Engines in plain operations: record by record, layer by layer, and layer by layer twice.

Layer by layer, every trainable parameter enters as B views of itself, one for a record, so that one
backward pass returns per-record gradients, whatever the layer. A layer with a rule of
`grad_samplers` runs once for all records, at nearly the price of an ordinary layer; `vmap` runs the
others.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from privacy import clipping
from privacy.errors import UmbraError
from privacy.gradients.base import Batch, RecordLoss, checked, require_scalar, trainable
from privacy.gradients.grad_samplers import RULES, batched_apply, concatenated

Take = Callable[[str, Tensor], None]


class RecordEngine:
    """Keeps one gradient, of one record's mean over its K views; best where views are large."""

    name = "record"

    def sum_of_clipped(
        self, model: nn.Module, loss: RecordLoss, records: Batch, clip_norm: float, micro_batch: int
    ) -> dict[str, Tensor]:
        """See `GradientEngine.sum_of_clipped`."""
        with checked(model, records, clip_norm, micro_batch) as trained, torch.enable_grad():
            parameters = _in_fast_order(trained)
            # As one vector, for gradients that exceed a processor's cache: memory is walked through
            # once to form float64, once for the norm and once for the sum.
            total, sums = clipping.zeros_in_one_piece(parameters)
            vector, parts = clipping.zeros_in_one_piece(parameters)
            leaves = list(parameters.values())

            def call(*args: Any, **kwargs: Any) -> Tensor:
                return functional_call(model, parameters, args, kwargs)

            for record in zip(*records, strict=True):
                mean = require_scalar(loss(call, *record))
                gradients = torch.autograd.grad(mean, leaves, materialize_grads=True)
                torch._foreach_copy_(list(parts.values()), gradients)
                clipping.add_clipped_vector(total, vector, clip_norm)
        return sums


class LayerwiseEngine:
    """Keeps the gradients of a micro-batch: its memory is micro-batch times parameters."""

    name = "layerwise"

    def sum_of_clipped(
        self, model: nn.Module, loss: RecordLoss, records: Batch, clip_norm: float, micro_batch: int
    ) -> dict[str, Tensor]:
        """See `GradientEngine.sum_of_clipped`."""
        with checked(model, records, clip_norm, micro_batch) as parameters:
            sums = clipping.zero_sums(parameters)
            if len(records[0]):
                clipping.add_clipped(sums, gradients(model, loss, records), clip_norm)
        return sums


class TwoPassEngine:
    """Keeps one layer's gradients: one pass measures norms, a second one clips and adds.

    Raises UmbraError, and releases nothing, where a device adds in no fixed order.
    """

    # Ghost clipping (Li et al. 2022) would take the weighted sum of losses for its second pass,
    # but in floating point that is the gradient of another sum: where a record's own terms cancel,
    # it could add more than C though its norm did not exceed it. Here the same gradients are
    # measured and added.
    name = "two-pass"

    def sum_of_clipped(
        self, model: nn.Module, loss: RecordLoss, records: Batch, clip_norm: float, micro_batch: int
    ) -> dict[str, Tensor]:
        """See `GradientEngine.sum_of_clipped`."""
        with checked(model, records, clip_norm, micro_batch) as parameters:
            sums = clipping.zero_sums(parameters)
            if not len(records[0]):
                return sums
            squares = torch.zeros(2, len(records[0]), dtype=torch.float64, device=records[0].device)

            def measure(name: str, of_layer: Tensor) -> None:
                squares[0] += clipping.GradientMatrix.of(name, of_layer).squared_norms()

            def add(name: str, of_layer: Tensor) -> None:
                matrix = clipping.GradientMatrix.of(name, of_layer)
                matrix.add(sums, factors)
                squares[1] += matrix.squared_norms()

            # A layer that draws (dropout) has to draw the same in both passes.
            with torch.random.fork_rng(list({part.device for part in records if part.is_cuda})):
                backward(model, loss, records, measure)
            factors = clipping.clip_factors(squares[0].sqrt(), clip_norm)
            backward(model, loss, records, add)
        # A record whose norm is not finite adds nothing, whatever either pass found.
        first, second = squares[:, factors > 0]
        if not torch.equal(first, second):
            raise UmbraError(
                "two backward passes over the same records differ: this device adds in no fixed "
                "order, and a clipped record could exceed its bound; use another gradient engine"
            )
        return sums


def _in_fast_order(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return leaves with the parameters' values, whose order in memory feature maps follow."""
    # Measured at 28x28 with K = 32: channels last takes some 8 % off a backward pass on a processor
    # with AVX-512 and adds some 14 % to it on one with AVX2 only.
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"

    leaves = {name: p.detach() for name, p in parameters.items()}
    for name, weight in leaves.items():
        if wide and weight.ndim == 4:
            # Not `contiguous`, which leaves a weight of one channel as it is, and all maps with it.
            leaves[name] = weight.to(memory_format=torch.channels_last)
        leaves[name].requires_grad_()
    return leaves


def gradients(model: nn.Module, loss: RecordLoss, records: Batch) -> dict[str, Tensor]:
    """Return the records' gradients [B, ...] by parameter, without those that are all zero."""
    found: dict[str, Tensor] = {}
    backward(model, loss, records, found.__setitem__)
    return found


def backward(model: nn.Module, loss: RecordLoss, records: Batch, take: Take) -> None:
    """Hand every parameter's per-record gradients to `take`, from the last layer to the first.

    Args:
        model: network; neither it nor its `.grad`s are changed.
        loss: loss of one record.
        records: tensors with the same leading dimension B, at least 1.
        take: called with a parameter's name and gradients [B, ...], once and as soon as they are
            complete; what it does not hold is freed. A parameter that the loss does not depend on
            is left out: its gradients are zero.
    """
    B = len(records[0])
    views = {
        name: p.detach().expand(B, *p.shape).requires_grad_()
        for name, p in trainable(model).items()
    }
    for name, view in views.items():
        view.register_hook(partial(_take_gradients, take, name))

    def of_one(parameters: dict[str, Tensor], *record: Tensor) -> Tensor:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            return functional_call(model, parameters, args, kwargs)

        with _ByRule(parameters.values()):
            return require_scalar(loss(call, *record))

    # The fused attention kernels' backward passes cannot be batched.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        losses = vmap(of_one, randomness="different")(views, *records)
        if losses.requires_grad:
            torch.autograd.grad(losses.sum(), list(views.values()), allow_unused=True)


def _take_gradients(take: Take, name: str, of_layer: Tensor) -> Tensor:
    take(name, of_layer.detach())
    # autograd keeps this until its end, in place of the gradients; it takes no memory.
    return of_layer.new_zeros(()).expand_as(of_layer)


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
        kwargs = kwargs or {}
        if func is torch.cat and not {"axis", "out"} & set(kwargs):
            return concatenated(*args, **kwargs)
        rule = RULES.get(func)
        bound = rule.bind(*args, **kwargs) if rule else None
        if rule and bound:
            weights = (arg for arg in bound[1:] if isinstance(arg, Tensor))
            if all(id(weight) in self._trained for weight in weights):
                return batched_apply(rule.operation, bound)
        return func(*args, **kwargs)
