"""Layer by layer, gradients kept: one backward pass for many records, then clip and sum."""

from torch import Tensor, nn

from privacy.gradients.base import ClippedSum, RecordLoss, sum_over_micro_batches
from privacy.gradients.clip_and_add import add_clipped
from privacy.gradients.per_record import gradients


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

        def add(sums: dict[str, Tensor], part: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            losses, by_parameter = gradients(model, loss, part)
            return losses, add_clipped(sums, by_parameter, clip_norm)

        return sum_over_micro_batches(model, records, clip_norm, micro_batch, add)
