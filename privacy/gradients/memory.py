"""How many records fit into memory at a time: estimated, and halved where it was too many."""

import math
from types import TracebackType

import torch
from torch import Tensor, nn

from privacy.gradients.base import GradientEngine

# Views times pixels from which a larger micro-batch is no faster (measured on 2 CPU cores; a GPU
# wants as many as fit).
_ENOUGH = {"cpu": 2**17}
_FLOAT_BYTES = 4
# A Poisson batch exceeds its expectation by this many standard deviations once in 1000 steps.
_DEVIATIONS = 3


class OOMBackoff:
    """Engine and micro-batch to use next; each attempt that runs out of memory makes them leaner.

    Used as a context around an attempt. An attempt that runs out of memory ends quietly, and
    whoever made it repeats it with half the micro-batch, or with the leaner engine where one
    record was too many. Nothing of a failed attempt may be used.

    Attributes:
        engine: how to compute clipped gradients.
        micro_batch: records to hold at a time.

    >>> from privacy.gradients import ENGINES
    >>> backoff = OOMBackoff(ENGINES["record"], leaner=ENGINES["two-pass"], micro_batch=3)
    >>> for _ in range(2):
    ...     with backoff:
    ...         raise torch.OutOfMemoryError
    >>> backoff.engine.name, backoff.micro_batch
    ('two-pass', 1)
    """

    def __init__(self, engine: GradientEngine, leaner: GradientEngine, micro_batch: int) -> None:
        """Start with `engine` and `micro_batch` records; fall back to `leaner`."""
        self.engine = engine
        self.micro_batch = micro_batch
        self._leaner: GradientEngine | None = leaner
        self._failed = False

    def __enter__(self) -> None:
        if self._failed:
            # Not in `__exit__`, where the error still holds what did not fit.
            torch.cuda.empty_cache()
            self._failed = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Suppress an out-of-memory error if a leaner attempt is left."""
        if not isinstance(error, torch.OutOfMemoryError):
            return False
        if self.micro_batch > 1:
            self.micro_batch //= 2
        elif self._leaner is not None:
            self.engine, self._leaner = self._leaner, None
        else:
            return False
        self._failed = True
        return True


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
    record = views * activation_bytes(model, inputs) + _FLOAT_BYTES * parameters
    enough = -(-_ENOUGH[device_type] // (views * pixels)) if device_type in _ENOUGH else limit
    return max(1, min(enough, limit // record))


def largest_batch(expected: float, records: int) -> int:
    """Return a size that a Poisson batch rarely exceeds, from public numbers.

    B + 3 sqrt(B), but no more than all records.

    Args:
        expected: B, the expected size of the batch.
        records: that it is drawn from.

    >>> largest_batch(64, 10_000)
    88
    """
    return max(1, min(records, math.ceil(expected + _DEVIATIONS * math.sqrt(expected))))


def balanced_microbatch(fitting: int, largest: int) -> int:
    """Return `largest` divided into the fewest equal parts of at most `fitting`, rounded up.

    Where every micro-batch is filled up to its size, as on a GPU, few rows are empty then.

    >>> balanced_microbatch(60, 88)
    44
    """
    return -(-largest // -(-largest // fitting))


def activation_bytes(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Return the bytes that autograd keeps of one forward pass, weights left out."""
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    # Tensors are held, so that no other storage can take an identity.
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            saved[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(*inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
