"""Layer by layer as one launch: a micro-batch's gradients and clipping as a CUDA graph.

A graph repeats its kernels at the addresses of its capture, so every micro-batch has the same
number of rows and the same place in memory. How many rows are records is private: it shapes the
copies that put records in and, as a mask, their clip factors; no graph and no kernel is made for
it. Work is captured on zeros.
"""

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privacy.clipping import add_clipped, add_to, zero_sums
from privacy.cuda_graph import Capture, Work, capture
from privacy.gradients.base import Batch, RecordLoss, checked
from privacy.gradients.engines import gradients

# A graph keeps its memory to itself, and a step needs some besides, to draw views and to add, noise
# and apply sums: in units of a micro-batch's records and sums.
_SPARE = 8


class CapturedEngine:
    """Keeps the gradients of a micro-batch, and one graph with its memory, between calls.

    The graph is captured anew where anything that it was made from has changed: see `_key`.
    """

    name = "captured"

    def __init__(self, capture: Capture = capture) -> None:
        """Capture by `capture`; where it returns the work itself, kernels are launched one by one.

        Every micro-batch costs as much as a full one: choose a size that leaves few rows empty.
        """
        self._capture = capture
        self._kept = _Kept()

    def sum_of_clipped(
        self, model: nn.Module, loss: RecordLoss, records: Batch, clip_norm: float, micro_batch: int
    ) -> dict[str, Tensor]:
        """See `GradientEngine.sum_of_clipped`."""
        kept = self._kept
        try:
            with checked(model, records, clip_norm, micro_batch) as parameters:
                sums = zero_sums(parameters)
                if not len(records[0]):
                    return sums
                key = _key(model, loss, records, clip_norm, micro_batch)
                if kept.key != key:
                    kept.__dict__.clear()  # first: there may not be room for both
                    kept.batch = FixedBatch(records, parameters, micro_batch)
                    self._capture_work(model, loss, clip_norm, kept.batch)
                    kept.key = key
                kept.batch.fill(records)
                kept.replay()
                # Copied, for the next replay overwrites the batch's own.
                add_to(sums, kept.batch.sums)
                return sums
        except BaseException:
            # Refused work must not be replayed, and failed work must give its memory back.
            kept.__dict__.clear()
            raise

    def _capture_work(
        self, model: nn.Module, loss: RecordLoss, clip_norm: float, batch: "FixedBatch"
    ) -> None:
        """Keep the work on a micro-batch, from `batch.records` to `batch.sums`, and its graph."""

        def work() -> None:
            torch._foreach_zero_(list(batch.sums.values()))
            add_clipped(batch.sums, gradients(model, loss, batch.records), clip_norm, batch.present)

        device = batch.present.device
        held_bytes = sum(tensor.nbytes for tensor in (*batch.records, *batch.sums.values()))
        spare = torch.empty(_SPARE * held_bytes, dtype=torch.uint8, device=device)
        self._kept.work, self._kept.replay = work, self._capture(work, device)
        del spare


class _Kept(threading.local):
    """What a thread keeps between calls, so that trainings never meet each other's records.

    The work holds model and loss, so that no other objects can take the identities in the key.
    """

    key: tuple[Any, ...] | None = None
    batch: "FixedBatch"
    work: Work
    replay: Work


class FixedBatch:
    """A micro-batch at fixed addresses with a fixed number of rows.

    Attributes:
        records: tensors [rows, ...].
        present: bool [rows], the rows that are records.
        sums: float64 sum of clipped gradients by parameter.
    """

    # Rows that hold no record are zero, so that nothing computed from them depends on a record, and
    # `present` masks them besides: either guard suffices alone.

    def __init__(self, records: Batch, parameters: Mapping[str, Tensor], rows: int) -> None:
        """Begin with no record, but of the shape of `records`, and with sums of zero."""
        self.records = tuple(part.new_zeros((rows, *part.shape[1:])) for part in records)
        self.sums = zero_sums(parameters)
        device = next(iter(self.sums.values())).device
        self.present = torch.zeros(rows, dtype=torch.bool, device=device)

    @torch.no_grad()
    def fill(self, records: Batch) -> None:
        """Put in records [n, ...], n at most the number of rows, and clear the other rows."""
        n = len(records[0])
        for held, given in zip(self.records, records, strict=True):
            held[:n].copy_(given)
            held[n:].zero_()
        self.present[:n].fill_(True)
        self.present[n:].fill_(False)


def _key(model: nn.Module, loss: RecordLoss, records: Batch, *public: float) -> tuple[Any, ...]:
    """Return what has to be the same for a graph to be replayed: objects, modes, addresses."""
    named = *model.named_parameters(), *model.named_buffers()
    return (
        (id(model), id(loss), *public),
        tuple(module.training for module in model.modules()),
        tuple((part.shape[1:], part.dtype, part.device) for part in records),
        tuple(
            (name, t.data_ptr(), t.shape, t.stride(), t.dtype, t.device, t.requires_grad)
            for name, t in named
        ),
    )
