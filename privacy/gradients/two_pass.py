"""Norms first, then weights: two backward passes, and never more than one layer's gradients kept.

The first pass finds every record's norm and lets each layer's gradients go; the second forms them
again, clipped. Ghost clipping (Li et al. 2022) would take the weighted sum of losses for its second
pass, but in floating point that is the gradient of another sum: where a record's own terms cancel,
what it adds could exceed C though its norm did not. Here what is added up is what was measured.
"""

import torch
from torch import Tensor, nn

from privacy.clipping import clip_factors
from privacy.errors import UmbraError
from privacy.gradients.base import ClippedSum, RecordLoss, sum_over_micro_batches
from privacy.gradients.clip_and_add import add_scaled, squared_norms
from privacy.gradients.per_record import backward


class TwoPassEngine:
    """Keeps one layer's gradients at a time; costs a second backward pass."""

    name = "two-pass"

    def sum_of_clipped(
        self,
        model: nn.Module,
        loss: RecordLoss,
        records: tuple[Tensor, ...],
        clip_norm: float,
        micro_batch: int,
    ) -> ClippedSum:
        """See `GradientEngine.sum_of_clipped`.

        Raises:
            UmbraError: the two passes disagree, as only a device does whose sums have no fixed
                order; nothing was released.
        """

        def add(sums: dict[str, Tensor], part: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            squares = _SquaredNorms(part[0])
            # A layer that draws (dropout) has to draw the same in both passes.
            with torch.random.fork_rng(_gpus(part)):
                losses = backward(model, loss, part, squares.take)
            norms = squares.total.sqrt()
            clipped = _Clipped(sums, clip_factors(norms, clip_norm))
            backward(model, loss, part, clipped.take)
            _require_equal(clipped.total, squares.total, clipped.factors)
            return losses, norms

        return sum_over_micro_batches(model, records, clip_norm, micro_batch, add)


class _SquaredNorms:
    """Adds up the squared norms [n] of every parameter's gradients."""

    def __init__(self, records: Tensor) -> None:
        self.total = torch.zeros(len(records), dtype=torch.float64, device=records.device)

    def take(self, name: str, gradients: Tensor) -> None:
        self.total += squared_norms(gradients)


class _Clipped:
    """Adds clipped gradients to sums, and measures once more what it adds."""

    def __init__(self, sums: dict[str, Tensor], factors: Tensor) -> None:
        self.factors = factors
        self.total = torch.zeros_like(factors)
        self._sums = sums

    def take(self, name: str, gradients: Tensor) -> None:
        self.total += add_scaled(self._sums, name, gradients, self.factors)


def _gpus(records: tuple[Tensor, ...]) -> list[torch.device]:
    return list({part.device for part in records if part.is_cuda})


def _require_equal(second: Tensor, first: Tensor, factors: Tensor) -> None:
    # A record whose norm is not finite adds nothing, whatever either pass found.
    if not torch.equal(second[factors > 0], first[factors > 0]):
        raise UmbraError(
            "two backward passes over the same records gave different gradients, so this device "
            "does not add in a fixed order and a clipped record could exceed its bound; use "
            "another gradient engine"
        )
