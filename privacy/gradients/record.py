"""Record by record: an ordinary backward pass for each, best where a record's views are large.

The backward pass of one record's mean over K views already is that record's gradient, so nothing
is materialised but one gradient at a time.
"""

from collections.abc import Mapping

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
                result.losses[i], gradients = _gradients(model, loss, record, parameters)
                result.norms[i : i + 1] = joint_norms(gradients)
                factors = clip_factors(result.norms[i : i + 1], clip_norm)
                add_clipped(result.sums, gradients, factors)
        return result


def _gradients(
    model: nn.Module,
    loss: RecordLoss,
    record: tuple[Tensor, ...],
    parameters: Mapping[str, nn.Parameter],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return one record's loss and its gradients [1, ...] by parameter."""
    with torch.enable_grad():
        value = require_scalar(loss(model, *record))
        gradients = torch.autograd.grad(
            value, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
    by_name = zip(parameters, gradients, strict=True)
    return value.detach(), {name: gradient[None] for name, gradient in by_name}
