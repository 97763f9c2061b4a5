"""The contract of a gradient engine: the sum over records of gradients clipped once a record."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from privacy.errors import InvalidRequest
from privacy.validation import positive_int, positive_number

ModelCall = Callable[..., Tensor]
Batch = tuple[Tensor, ...]  # records, with one leading dimension in common


class RecordLoss(Protocol):
    """The loss of one record, averaged over its K views: its gradient is clipped once.

    Some engines run it under `torch.func.vmap`: no `.item()` and no branch on values.
    """

    def __call__(self, model: ModelCall, /, *record: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a tensor of shape [].

        Args:
            model: may be called like the network and used in no other way.
            record: one record's tensors without a batch dimension, for example an image [C, H, W],
                its label [], noise levels [K] and noise [K, C, H, W].
        """
        ...


class GradientEngine(Protocol):
    """One way to compute clipped per-record gradients; all ways give the same sums."""

    name: str

    def sum_of_clipped(
        self, model: nn.Module, loss: RecordLoss, records: Batch, clip_norm: float, micro_batch: int
    ) -> dict[str, Tensor]:
        """Return sum_i clip(grad l_i, C) over the records of one micro-batch.

        The norm is taken over all trainable parameters jointly. A record whose gradient is not
        finite adds exactly zero. The model, its `.grad`s and buffers are not changed.

        Args:
            model: network; parameters without `requires_grad` are left alone.
            loss: l, the loss of one record.
            records: tensors with the same leading dimension n, the record; n may be 0.
            clip_norm: C, positive.
            micro_batch: public upper bound of n; has no influence on the sum.

        Returns:
            Parameter name to float64 sum, of the parameter's shape and on its device; together
            their L2 sensitivity is C. The caller owns them. They are private until noised.

        Raises:
            InvalidRequest: if the model mixes records or keeps state from them, has nothing to
                train, or an argument is not as above.
        """
        ...


def refuse_record_mixing(model: nn.Module) -> None:
    """Raise `InvalidRequest` if a layer lets one record see another or keeps what it saw."""
    for name, module in model.named_modules():
        # Batch normalisation uses the batch's statistics in training. Running averages, instance
        # normalisation's too, carry private values into the checkpoint past clipping and noise.
        if not hasattr(module, "track_running_stats"):
            continue
        instance_norm = isinstance(
            module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
        )
        if module.track_running_stats or not instance_norm:
            found = f"layer {name or 'model'!r} is a {type(module).__name__}"
            raise InvalidRequest(f"{found}, which mixes records or keeps statistics; use GroupNorm")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters with `requires_grad` by name; raise InvalidRequest if none has it."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise InvalidRequest("the model has no parameter with requires_grad: nothing to train")
    return parameters


@contextmanager
def checked(
    model: nn.Module, records: Batch, clip_norm: float, micro_batch: int
) -> Iterator[dict[str, nn.Parameter]]:
    """Check the arguments of `GradientEngine.sum_of_clipped`, and the buffers after the block.

    Yields the model's trainable parameters by name.
    """
    refuse_record_mixing(model)
    positive_number("the clip norm", clip_norm)
    positive_int("the micro-batch", micro_batch)
    if not records or any(part.ndim < 1 or len(part) != len(records[0]) for part in records):
        raise InvalidRequest("records must be tensors with the same leading dimension")
    if len(records[0]) > micro_batch:
        raise InvalidRequest(f"expected at most {micro_batch} records at a time, found more")
    before = {name: (buffer, buffer._version) for name, buffer in model.named_buffers()}
    yield trainable(model)
    # A buffer that is written to would carry records into the checkpoint without clipping or noise.
    # This finds custom layers, which `refuse_record_mixing` cannot know.
    for name, buffer in model.named_buffers():
        held, version = before.get(name, (None, -1))
        if held is not buffer or version != buffer._version:
            raise InvalidRequest(
                f"the model wrote to its buffer {name!r} while it saw records; the buffer would "
                "leave without noise, so remove it or keep it constant"
            )


def require_scalar(loss: Tensor) -> Tensor:
    """Return a record's loss if its shape is [], else raise `InvalidRequest`."""
    # A loss for each view would give a record K times the sensitivity.
    if loss.shape != torch.Size([]):
        found = f"{loss.ndim} dimensions; take the mean over the record's views"
        raise InvalidRequest(f"the loss of a record must be one scalar, found {found}")
    return loss
