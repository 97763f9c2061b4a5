"""How many records fit into memory at a time: estimated, and halved where it was too many."""

import math

import torch
from torch import Tensor, nn

from privacy.gradients.base import ClippedSum, GradientEngine, RecordLoss

# Views times pixels from which a larger micro-batch is no faster (measured on 2 CPU cores; a GPU
# wants as many as fit).
_ENOUGH = {"cpu": 2**17}
_FLOAT = 4
# Of a batch drawn record by record, above its expectation: one in 1000 is larger.
_DEVIATIONS = 3


def micro_batch(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    views: int,
    pixels: int,
    device_type: str,
    limit: int,
) -> int:
    """Return the records to hold at a time; it has no influence on what is computed.

    Args:
        model: network, on any device ("meta" will do).
        inputs: of one view, on the same device.
        views: K.
        pixels: height times width of an image.
        device_type: `torch.device.type` that the training runs on.
        limit: bytes that a micro-batch may take.
    """
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    record = views * activation_bytes(model, inputs) + _FLOAT * parameters
    enough = -(-_ENOUGH[device_type] // (views * pixels)) if device_type in _ENOUGH else limit
    return max(1, min(enough, limit // record))


def largest_batch(expected: float, records: int) -> int:
    """Return a size that hardly a batch exceeds, from public numbers: at most all records.

    Args:
        expected: size of a batch that is drawn record by record.
        records: that it is drawn from.
    """
    return max(1, min(records, math.ceil(expected + _DEVIATIONS * math.sqrt(expected))))


def balanced_microbatch(fitting: int, largest: int) -> int:
    """Return a micro-batch of at most `fitting`, as many of which as are needed make `largest`.

    Where every micro-batch is filled up to its size, as on a GPU, few rows are empty then.
    """
    return -(-largest // -(-largest // fitting))


def activation_bytes(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Return the bytes that autograd keeps of one forward pass, weights left out."""
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            saved[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(*inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


class WithinMemory:
    """An engine that takes fewer records at a time where its device runs out of memory.

    Where one record's gradients are too many, a leaner engine takes over. Nothing of a failed
    attempt is used, so the sums are those of the engine.
    """

    def __init__(self, engine: GradientEngine, leaner: GradientEngine) -> None:
        """Use `engine` as long as a record fits, and `leaner` from then on."""
        self.name = engine.name
        self._engines = [engine, leaner]
        self._most: int | None = None

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
            torch.OutOfMemoryError: not even the leaner engine has room for one record.
        """
        while True:
            size = min(micro_batch, self._most or micro_batch)
            try:
                return self._engines[0].sum_of_clipped(model, loss, records, clip_norm, size)
            except torch.OutOfMemoryError:
                if size == 1 and len(self._engines) == 1:
                    raise
            # Outside of the handler, where the error no longer holds what did not fit.
            torch.cuda.empty_cache()
            if size > 1:
                self._most = size // 2
            else:
                self._engines.pop(0)
