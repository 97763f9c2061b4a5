"""Layer by layer, gradients kept: one backward pass for many records, then clip and sum."""

from torch import Tensor, nn

from privacy.clipping import clip_factors
from privacy.gradients.base import (
    ClippedSum,
    RecordLoss,
    buffers_unchanged,
    check_request,
    trainable,
)
from privacy.gradients.clip_and_add import add_clipped, joint_norms
from privacy.gradients.per_record import backward


class LayerwiseEngine:
    """Keeps the gradients of a micro-batch: its memory is micro-batch times parameters."""

    name = "layerwise"

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
        result = ClippedSum.zeros(trainable(model), n)
        with buffers_unchanged(model):
            for start in range(0, n, micro_batch):
                chunk = slice(start, start + micro_batch)
                gradients: dict[str, Tensor] = {}
                result.losses[chunk] = backward(
                    model, loss, tuple(part[chunk] for part in records), gradients.__setitem__
                )
                result.norms[chunk] = joint_norms(gradients)
                factors = clip_factors(result.norms[chunk], clip_norm)
                add_clipped(result.sums, gradients, factors)
        return result
