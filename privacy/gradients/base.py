"""What a gradient engine promises: the sum over records of gradients clipped once a record."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from privacy.errors import InvalidRequest
from privacy.validation import positive_int, positive_number

ModelCall = Callable[..., Tensor]
AddClipped = Callable[[dict[str, Tensor], tuple[Tensor, ...]], tuple[Tensor, Tensor]]


class RecordLoss(Protocol):
    """The loss of one record, already averaged over its K views.

    `model` may be called like the network and used in no other way. `record` holds one record's
    tensors without a batch dimension, for example an image [C, H, W], its label [], noise levels
    [K] and noise [K, C, H, W]. All views go into this one scalar, because what it is the gradient
    of is clipped once: a loss for a view would give a record K times the sensitivity.

    The loss is run under `torch.func.vmap` by some engines: no `.item()` and no branch on values.
    """

    def __call__(self, model: ModelCall, /, *record: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor of shape []."""
        ...


@dataclass(frozen=True)
class ClippedSum:
    """A step's sum before noise. Nothing in it may leave the wall, so the repr shows nothing.

    Attributes:
        sums: parameter name to float64 sum of clipped gradients, of the parameter's shape and on
            its device; together their L2 sensitivity is the clip norm.
        records: how many records were summed (internal: a batch size is private).
        norms: float64 [n] gradient norms before clipping, as they came (internal).
        losses: float64 [n] losses, as they came (internal).
    """

    sums: dict[str, Tensor] = field(repr=False)
    records: int = field(repr=False)
    norms: Tensor = field(repr=False)
    losses: Tensor = field(repr=False)

    @classmethod
    def zeros(cls, parameters: Mapping[str, Tensor], records: int) -> "ClippedSum":
        """Return what an engine fills in: zeros of the right shapes, on the parameters' device."""
        device = next(iter(parameters.values())).device
        norms, losses = torch.zeros((2, records), dtype=torch.float64, device=device)
        return cls(zero_sums(parameters), records, norms, losses)


def zero_sums(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return float64 zeros of the parameters' shapes, on the device of the first.

    They lie in one piece of memory, which a GPU is told once to fill.
    """
    return zeros_in_one_piece(parameters)[1]


def zeros_in_one_piece(parameters: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return float64 zeros for all parameters as one vector, and each one's part of it.

    A part has its parameter's shape and order of memory; the device is the first one's.
    """
    device = next(iter(parameters.values())).device
    sizes = [p.numel() for p in parameters.values()]
    vector = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
    named = zip(parameters.items(), vector.split(sizes), strict=True)
    return vector, {name: part.as_strided(p.shape, _dense(p)) for (name, p), part in named}


def _dense(tensor: Tensor) -> tuple[int, ...]:
    # The tensor itself may have gaps; what is made like it has none.
    return torch.empty_like(tensor, device="meta").stride()


def add_to(sums: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    """Add to each sum the part of its name, in place; a GPU is told for many at once."""
    torch._foreach_add_(list(sums.values()), [parts[name] for name in sums])


class GradientEngine(Protocol):
    """One way to compute clipped per-record gradients; all ways give the same sums."""

    name: str

    def sum_of_clipped(
        self,
        model: nn.Module,
        loss: RecordLoss,
        records: tuple[Tensor, ...],
        clip_norm: float,
        micro_batch: int,
    ) -> ClippedSum:
        """Sum over records the gradient of the record's loss, clipped to `clip_norm` once.

        The norm is taken over all trainable parameters jointly. A record whose gradient is not
        finite adds exactly zero. No record gives the sums and zeros of the right shapes, since an
        empty batch still takes its noisy step. The model, its `.grad`s and buffers are not changed.

        Args:
            model: network whose parameters with `requires_grad` are trained.
            loss: loss of one record.
            records: tensors with the same leading dimension n, the record.
            clip_norm: C, positive.
            micro_batch: records held in memory at a time; no influence on the sum.

        Raises:
            InvalidRequest: if the model mixes records or keeps state from them, has nothing to
                train, or an argument is not as above.
        """
        ...


def refuse_record_mixing(model: nn.Module) -> None:
    """Raise `InvalidRequest` if a layer lets one record see another or keeps what it saw.

    Batch normalisation uses the batch's statistics in training and carries private running
    averages into the checkpoint, past clipping and noise; so does instance normalisation that
    tracks running statistics. With such a layer no gradient belongs to one record.
    """
    for name, module in model.named_modules():
        tracks = isinstance(module, _InstanceNorm) and module.track_running_stats
        if tracks or isinstance(module, _BatchNorm):
            raise InvalidRequest(
                f"layer {name or 'model'!r} is a {type(module).__name__}, which mixes records or "
                "keeps their statistics; use GroupNorm"
            )


@contextmanager
def buffers_unchanged(model: nn.Module) -> Iterator[None]:
    """Raise `InvalidRequest` at the end of the block if a buffer of the model was written to.

    A buffer that a forward pass writes to would carry records into the checkpoint without clipping
    or noise. Layers of one's own are found here, which `refuse_record_mixing` cannot know.
    """
    before = {name: (buffer, buffer._version) for name, buffer in model.named_buffers()}
    yield
    for name, buffer in model.named_buffers():
        if (
            name not in before
            or before[name][0] is not buffer
            or before[name][1] != buffer._version
        ):
            raise InvalidRequest(
                f"the model wrote to its buffer {name!r} while it saw records; the buffer would "
                "leave without noise, so remove it or keep it constant"
            )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters with `requires_grad` by name, a shared one once.

    Raises:
        InvalidRequest: if there is none.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise InvalidRequest("the model has no parameter with requires_grad: nothing to train")
    return parameters


def check_request(
    model: nn.Module, records: tuple[Tensor, ...], clip_norm: float, micro_batch: int
) -> int:
    """Validate the arguments of `GradientEngine.sum_of_clipped` and return n."""
    refuse_record_mixing(model)
    positive_number("the clip norm", clip_norm)
    positive_int("the micro-batch", micro_batch)
    if not records or any(part.ndim < 1 or len(part) != len(records[0]) for part in records):
        raise InvalidRequest("records must be tensors with the same leading dimension")
    return len(records[0])


def sum_over_micro_batches(
    model: nn.Module,
    records: tuple[Tensor, ...],
    clip_norm: float,
    micro_batch: int,
    add: AddClipped,
) -> ClippedSum:
    """Do what every `GradientEngine.sum_of_clipped` does around its own way to the gradients.

    Args:
        model, records, clip_norm, micro_batch: of `GradientEngine.sum_of_clipped`.
        add: adds the clipped gradients of a micro-batch to the sums, in place, and returns its
            losses and its norms before clipping.

    Raises:
        InvalidRequest: see `GradientEngine.sum_of_clipped`.
    """
    n = check_request(model, records, clip_norm, micro_batch)
    result = ClippedSum.zeros(trainable(model), n)
    with buffers_unchanged(model):
        for start in range(0, n, micro_batch):
            chunk = slice(start, start + micro_batch)
            part = tuple(p[chunk] for p in records)
            result.losses[chunk], result.norms[chunk] = add(result.sums, part)
    return result


def require_scalar(loss: Tensor) -> Tensor:
    """Return a record's loss if its shape is [], else raise `InvalidRequest`."""
    if loss.shape != torch.Size([]):
        raise InvalidRequest(
            f"the loss of a record must be one scalar, found {loss.ndim} dimensions; take the mean "
            "over the record's views"
        )
    return loss
