"""Record by record: an ordinary backward pass for each, best where a record's views are large.

The backward pass of one record's mean over K views already is that record's gradient, so nothing
is materialised but one gradient at a time.
"""

import torch
from torch import Tensor, nn

from privacy.clipping import clip_factors, sum_clipped
from privacy.gradients.base import (
    ClippedSum,
    RecordLoss,
    buffers_unchanged,
    check_request,
    require_scalar,
    trainable,
)


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
        sizes = [p.numel() for p in parameters.values()]
        device = next(iter(parameters.values())).device
        total = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        norms = torch.zeros(n, dtype=torch.float64, device=device)
        losses = torch.zeros(n, dtype=torch.float64, device=device)
        with buffers_unchanged(model):
            for i in range(n):
                losses[i], gradient = _gradient(
                    model, loss, tuple(part[i] for part in records), list(parameters.values())
                )
                norms[i] = torch.linalg.vector_norm(gradient, dtype=torch.float64)
                total += sum_clipped(gradient[None], clip_factors(norms[i : i + 1], clip_norm))
        parts = zip(parameters.items(), total.split(sizes), strict=True)
        sums = {name: part.reshape(p.shape) for (name, p), part in parts}
        return ClippedSum(sums, n, norms, losses)


def _gradient(
    model: nn.Module, loss: RecordLoss, record: tuple[Tensor, ...], parameters: list[nn.Parameter]
) -> tuple[Tensor, Tensor]:
    """Return one record's loss and its gradient over all parameters, flattened into one vector."""
    with torch.enable_grad():
        value = require_scalar(loss(model, *record))
        gradients = torch.autograd.grad(
            value, parameters, allow_unused=True, materialize_grads=True
        )
    return value.detach(), torch.cat([g.reshape(-1) for g in gradients])
