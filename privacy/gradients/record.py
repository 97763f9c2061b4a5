"""Record by record: an ordinary backward pass for each, best where a record's views are large.

The backward pass of one record's mean over K views already is that record's gradient, so nothing
is materialised but one gradient at a time.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from privacy.clipping import clip_factors
from privacy.gradients.base import (
    ClippedSum,
    RecordLoss,
    buffers_unchanged,
    check_request,
    require_scalar,
    trainable,
)
from privacy.gradients.clip_and_add import add_clipped, joint_norms


class RecordEngine:
    """A loop of ordinary backward passes; its memory does not depend on the micro-batch."""

    name = "record"

    def sum_of_clipped(
        self,
        model: nn.Module,
        loss: RecordLoss,
        records: tuple[Tensor, ...],
        clip_norm: float,
        micro_batch: int,
    ) -> ClippedSum:
        """See `GradientEngine.sum_of_clipped`."""
        n = check_request(model, records, clip_norm, micro_batch)
        parameters = trainable(model)
        result = ClippedSum.zeros(parameters, n)
        with buffers_unchanged(model):
            for i in range(n):
                record = tuple(part[i] for part in records)
                result.losses[i], found = _gradients(model, loss, record, parameters.values())
                gradients = [gradient[None] for gradient in found]
                result.norms[i] = joint_norms(gradients)
                factors = clip_factors(result.norms[i : i + 1], clip_norm)
                for name, gradient in zip(parameters, gradients, strict=True):
                    add_clipped(result.sums[name], gradient, factors)
        return result


def _gradients(
    model: nn.Module,
    loss: RecordLoss,
    record: tuple[Tensor, ...],
    parameters: Iterable[nn.Parameter],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return one record's loss and its gradients, one for each parameter."""
    with torch.enable_grad():
        value = require_scalar(loss(model, *record))
        gradients = torch.autograd.grad(
            value, list(parameters), allow_unused=True, materialize_grads=True
        )
    return value.detach(), gradients
