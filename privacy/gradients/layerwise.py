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
from privacy.gradients.clip_and_add import SquaredNorms, add_clipped
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
                kept = _Kept(result.norms[chunk])
                result.losses[chunk] = backward(
                    model, loss, tuple(part[chunk] for part in records), kept.take
                )
                result.norms[chunk] = kept.squares.total.sqrt()
                factors = clip_factors(result.norms[chunk], clip_norm)
                for name, gradients in kept.gradients.items():
                    add_clipped(result.sums[name], gradients, factors)
        return result


class _Kept:
    """Keeps every parameter's gradients, measured while they are still in the cache."""

    def __init__(self, like: Tensor) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.squares = SquaredNorms(like)

    def take(self, name: str, gradients: Tensor) -> None:
        self.squares.take(name, gradients)
        self.gradients[name] = gradients
