"""Layer by layer as one launch: a micro-batch's gradients and clipping as a CUDA graph.

A graph repeats its kernels at the addresses of its capture, so every micro-batch has the same
number of rows and the same place in memory. How many rows are records is private: it shapes the
copies that put records in and, as a mask, their clip factors; no graph and no kernel is made for
it. Work is captured on zeros.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from privacy.clipping import add_clipped, add_to, zero_sums
from privacy.cuda_graph import Capture, Work, capture
from privacy.gradients.base import RecordLoss, checked
from privacy.gradients.layerwise import gradients

# A graph keeps its memory to itself, and a step needs some besides: it draws views, and adds,
# noises and applies sums. In bytes of a micro-batch's records and of its sums.
_SPARE = 8


class CapturedEngine:
    """Keeps the gradients of a micro-batch, and one graph with its memory, between calls.

    The graph is captured anew where anything that it was made from has changed. A model and a loss
    count as unchanged as long as they are the same objects, with parameters and buffers at the
    same addresses, in the same mode of training. Each thread has a graph of its own, so trainings
    that share an engine never meet each other's records.
    """

    name = "captured"

    def __init__(self, capture: Capture = capture) -> None:
        """Capture by `capture`; where it returns the work itself, kernels are launched one by one.

        Every micro-batch costs as much as a full one: choose a size that leaves few rows empty.
        """
        self._capture = capture
        self._kept = _Kept()

    def sum_of_clipped(
        self,
        model: nn.Module,
        loss: RecordLoss,
        records: tuple[Tensor, ...],
        clip_norm: float,
        micro_batch: int,
    ) -> dict[str, Tensor]:
        """See `GradientEngine.sum_of_clipped`."""
        try:
            with checked(model, records, clip_norm, micro_batch) as parameters:
                if not len(records[0]):
                    return zero_sums(parameters)
                kept, key = self._kept, _key(model, loss, records, clip_norm, micro_batch)
                if kept.batch is None or kept.key != key:
                    kept.clear()  # first: there may not be room for both
                    kept.batch = FixedBatch.like(records, parameters, micro_batch)
                    kept.work = _work(model, loss, clip_norm, kept.batch)
                    kept.replay = self._captured(kept.work, kept.batch)
                    kept.key = key
                batch = kept.batch
                batch.fill(records)
                kept.replay()
                # Copied, for the next replay overwrites the batch's own.
                sums = zero_sums(parameters)
                add_to(sums, batch.sums)
                return sums
        except BaseException:
            # Refused work must not be replayed, and failed work must give its memory back.
            self._kept.clear()
            raise

    def _captured(self, work: Work, batch: "FixedBatch") -> Work:
        held = *batch.records, *batch.sums.values()
        spare_bytes = _SPARE * sum(tensor.nbytes for tensor in held)
        device = batch.present.device
        spare = torch.empty(spare_bytes, dtype=torch.uint8, device=device)
        replay = self._capture(work, device)
        del spare
        return replay


@dataclass(frozen=True)
class FixedBatch:
    """A micro-batch at fixed addresses with a fixed number of rows; the repr shows nothing of it.

    Rows that hold no record are zero, so that nothing computed from them depends on a record, and
    `present` masks them besides: either guard suffices alone.

    Attributes:
        records: tensors [rows, ...].
        present: bool [rows], the rows that are records.
        sums: float64 sum of clipped gradients by parameter.
    """

    records: tuple[Tensor, ...] = field(repr=False)
    present: Tensor = field(repr=False)
    sums: dict[str, Tensor] = field(repr=False)

    @classmethod
    def like(cls, records: tuple[Tensor, ...], parameters: Mapping[str, Tensor], rows: int) -> Self:
        """Return an empty one for such records and the sums of such parameters."""
        device = next(iter(parameters.values())).device
        return cls(
            tuple(part.new_zeros((rows, *part.shape[1:])) for part in records),
            torch.zeros(rows, dtype=torch.bool, device=device),
            zero_sums(parameters),
        )

    @torch.no_grad()
    def fill(self, records: tuple[Tensor, ...]) -> None:
        """Put in records [n, ...], n at most the number of rows, and clear the other rows."""
        n = len(records[0])
        for held, given in zip(self.records, records, strict=True):
            held[:n].copy_(given)
            held[n:].zero_()
        self.present[:n].fill_(True)
        self.present[n:].fill_(False)


class _Kept(threading.local):
    """What a thread keeps between calls.

    The work holds model and loss, so that no other objects can take the identities in the key.
    """

    key: tuple[Any, ...] | None = None
    batch: FixedBatch | None = None
    work: Work | None = None
    replay: Work

    def clear(self) -> None:
        self.__dict__.clear()


def _key(
    model: nn.Module,
    loss: RecordLoss,
    records: tuple[Tensor, ...],
    clip_norm: float,
    micro_batch: int,
) -> tuple[Any, ...]:
    """Return everything that has to be the same for a graph to be replayed."""
    named = *model.named_parameters(), *model.named_buffers()
    return (
        (id(model), id(loss), clip_norm, micro_batch),
        tuple(module.training for module in model.modules()),
        tuple((part.shape[1:], part.dtype, part.device) for part in records),
        tuple((name, *_place(tensor)) for name, tensor in named),
    )


def _place(tensor: Tensor) -> tuple[Any, ...]:
    where = tensor.data_ptr(), tensor.shape, tensor.stride()
    return *where, tensor.dtype, tensor.device, tensor.requires_grad


def _work(model: nn.Module, loss: RecordLoss, clip_norm: float, batch: FixedBatch) -> Work:
    """Return the work on a micro-batch: from `batch.records` to `batch.sums`."""

    def work() -> None:
        torch._foreach_zero_(list(batch.sums.values()))
        add_clipped(batch.sums, gradients(model, loss, batch.records), clip_norm, batch.present)

    return work
