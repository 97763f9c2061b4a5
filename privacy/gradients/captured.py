"""Layer by layer as one launch: what is done to a micro-batch is captured once and replayed.

A graph does what it was told at the addresses where it was told it, so every micro-batch has the
same number of rows and the same place. How many of them are records is private. It shapes the
copies that put records in, and nothing that is computed from them, where it is a mask: no graph, no
kernel and no choice between kernels is made for it. What is captured was captured on zeros.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from privacy.gradients import cuda_graph
from privacy.gradients.base import ClippedSum, RecordLoss, add_to, sum_over_micro_batches, trainable
from privacy.gradients.clip_and_add import add_clipped
from privacy.gradients.cuda_graph import Replayable, Work
from privacy.gradients.fixed_batch import FixedBatch
from privacy.gradients.per_record import OfRecords, gradients

Gradients = Callable[..., OfRecords]  # of the records' tensors
Prepare = Callable[[nn.Module, RecordLoss, tuple[Tensor, ...]], Gradients]

# A graph keeps its memory to itself, and what a step does besides needs some: drawing views, and
# adding, noising and applying sums. In bytes of a micro-batch's records and of its sums.
_BESIDE = 8


def called(model: nn.Module, loss: RecordLoss, records: tuple[Tensor, ...]) -> Gradients:
    """Return per-record gradients as a function of records like these, operation by operation."""
    return lambda *records: gradients(model, loss, records)


class CapturedEngine:
    """Keeps the gradients of a micro-batch, and one graph with its memory, between calls.

    The graph is made anew where anything that it was made from has changed. A model and a loss are
    taken to do the same as long as they are the same objects, with parameters and buffers in the
    same places, in the same mode of training.

    Each thread has its own graph, and so does each copy: a training that runs beside another never
    meets the other's records.
    """

    name = "captured"

    def __init__(
        self, replayable: Replayable = cuda_graph.replayable, prepare: Prepare = called
    ) -> None:
        """Capture by `replayable` what `prepare` makes of a model and a loss."""
        self._replayable = replayable
        self._prepare = prepare
        self._kept = _Kept()

    def __reduce__(self) -> tuple[Any, ...]:
        return CapturedEngine, (self._replayable, self._prepare)

    def sum_of_clipped(
        self,
        model: nn.Module,
        loss: RecordLoss,
        records: tuple[Tensor, ...],
        clip_norm: float,
        micro_batch: int,
    ) -> ClippedSum:
        """See `GradientEngine.sum_of_clipped`.

        Every micro-batch costs what a full one does: choose its size so that few rows stay empty.
        """

        def add(sums: dict[str, Tensor], part: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            captured = self._captured(_Task.of(model, loss, part, clip_norm, micro_batch))
            batch, n = captured.batch, len(part[0])
            batch.fill(part)
            captured.replay()
            add_to(sums, batch.sums)
            # Copied by the caller, before anything is replayed again.
            return batch.losses[:n], batch.norms[:n]

        try:
            return sum_over_micro_batches(model, records, clip_norm, micro_batch, add)
        except BaseException:
            # What was refused must not be replayed, and what has no room must give its memory back.
            self._kept.captured = None
            raise

    def _captured(self, task: "_Task") -> "_Captured":
        kept = self._kept
        if kept.captured is None or kept.captured.task != task:
            # Let go of the old one first: there may not be room for both.
            kept.captured = None
            kept.captured = self._capture(task)
        return kept.captured

    def _capture(self, task: "_Task") -> "_Captured":
        parameters = trainable(task.model)
        batch = FixedBatch.like(task.records, parameters, task.micro_batch)
        held = *batch.records, *batch.sums.values()
        spare = torch.empty(
            _BESIDE * sum(tensor.nbytes for tensor in held),
            dtype=torch.uint8,
            device=batch.norms.device,
        )
        of_records = self._prepare(task.model, task.loss, batch.records)
        replay = self._replayable(_work(task, batch, of_records), batch.norms.device)
        del spare
        return _Captured(task, batch, replay)


@dataclass(frozen=True)
class _Task:
    """What a graph is made from.

    Attributes:
        model, loss, clip_norm, micro_batch: of `GradientEngine.sum_of_clipped`. Model and loss are
            held, so that no other objects can take their identities.
        records: of shape [0, ...], in place of the records.
        kind: what else has to be the same: identities, shapes, addresses.
    """

    model: nn.Module = field(compare=False)
    loss: RecordLoss = field(compare=False)
    records: tuple[Tensor, ...] = field(compare=False)
    clip_norm: float
    micro_batch: int
    kind: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss: RecordLoss,
        records: tuple[Tensor, ...],
        clip_norm: float,
        micro_batch: int,
    ) -> "_Task":
        named = *model.named_parameters(), *model.named_buffers()
        kind = (
            id(model),
            id(loss),
            tuple(module.training for module in model.modules()),
            tuple((part.shape[1:], part.dtype, part.device) for part in records),
            tuple((name, *_place(tensor)) for name, tensor in named),
        )
        empty = tuple(part.new_empty((0, *part.shape[1:])) for part in records)
        return cls(model, loss, empty, clip_norm, micro_batch, kind)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    where = tensor.data_ptr(), tensor.shape, tensor.stride()
    return *where, tensor.dtype, tensor.device, tensor.requires_grad


@dataclass(frozen=True)
class _Captured:
    task: _Task
    batch: FixedBatch
    replay: Work


class _Kept(threading.local):
    captured: _Captured | None = None


def _work(task: _Task, batch: FixedBatch, of_records: Gradients) -> Work:
    """Return what is done to a micro-batch: from `batch.records` to its sums, norms and losses."""

    def work() -> None:
        losses, by_parameter = of_records(*batch.records)
        torch._foreach_zero_(list(batch.sums.values()))
        norms = add_clipped(batch.sums, by_parameter, task.clip_norm, batch.present)
        batch.norms.copy_(norms)
        batch.losses.copy_(losses)

    return work
