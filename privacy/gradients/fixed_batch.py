"""A micro-batch that stays in one place in memory and always has the same number of rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from privacy.gradients.base import zero_sums


@dataclass(frozen=True)
class FixedBatch:
    """Where records are put in and results come out; the repr shows nothing of them.

    Rows that hold no record are zero, so that whatever is computed from them depends on no record,
    and `present` leaves them out besides.

    Attributes:
        records: tensors [size, ...].
        present: bool [size], the rows that are records.
        sums: float64 sum of clipped gradients by parameter.
        norms: float64 [size] gradient norms before clipping; of the rows that are records.
        losses: float64 [size], likewise.
    """

    records: tuple[Tensor, ...] = field(repr=False)
    present: Tensor = field(repr=False)
    sums: dict[str, Tensor] = field(repr=False)
    norms: Tensor = field(repr=False)
    losses: Tensor = field(repr=False)

    @classmethod
    def like(cls, records: tuple[Tensor, ...], parameters: Mapping[str, Tensor], size: int) -> Self:
        """Return an empty one of `size` rows for such records and the sums of such parameters."""
        device = next(iter(parameters.values())).device
        norms, losses = torch.zeros((2, size), dtype=torch.float64, device=device)
        return cls(
            tuple(part.new_zeros((size, *part.shape[1:])) for part in records),
            torch.zeros(size, dtype=torch.bool, device=device),
            zero_sums(parameters),
            norms,
            losses,
        )

    @torch.no_grad()
    def fill(self, records: tuple[Tensor, ...]) -> None:
        """Put in records [n, ...], n at most the size, and nothing into the other rows."""
        n = len(records[0])
        for held, given in zip(self.records, records, strict=True):
            held[:n].copy_(given)
            held[n:].zero_()
        self.present[:n].fill_(True)
        self.present[n:].fill_(False)
