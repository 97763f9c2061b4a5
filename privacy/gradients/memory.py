"""How many records fit into memory at a time: estimated, and halved where it was too many."""

import math

import torch
from torch import Tensor, nn

from privacy.gradients.base import GradientEngine

# Views times pixels from which a larger micro-batch is no faster on a CPU (measured on 2 cores); a
# GPU wants as many as fit.
_ENOUGH_ON_CPU = 2**17
# A Poisson batch exceeds its expectation by this many standard deviations once in 1000 steps.
_DEVIATIONS = 3


class OOMBackoff:
    """A context around an attempt, which ends quietly where the attempt runs out of memory.

    The caller then uses nothing of that attempt and repeats it with the new attributes: half the
    micro-batch, or the leaner engine where one record was too many.

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
        self.engine, self.micro_batch = engine, micro_batch
        self._leaner: GradientEngine | None = leaner
        self._failed = False

    def __enter__(self) -> None:
        if self._failed:
            # Not in `__exit__`, where the error still holds what did not fit.
            torch.cuda.empty_cache()
            self._failed = False

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
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

    `model` and its `inputs` for one view may be on any device ("meta" will do); an image has
    `pixels` = height times width; the training runs on `device_type`; a micro-batch may take
    `limit` bytes.
    """
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    record_bytes = views * activation_bytes(model, inputs) + 4 * parameters  # a float32 gradient
    enough = -(-_ENOUGH_ON_CPU // (views * pixels)) if device_type == "cpu" else limit
    return max(1, min(enough, limit // record_bytes))


def largest_batch(expected: float, records: int) -> int:
    """Return a public size that a Poisson batch rarely exceeds, B + 3 sqrt(B), at most `records`.

    >>> largest_batch(64, 10_000)
    88
    """
    return max(1, min(records, math.ceil(expected + _DEVIATIONS * math.sqrt(expected))))


def balanced_microbatch(fitting: int, largest: int) -> int:
    """Return `largest` divided into the fewest equal parts of at most `fitting`, rounded up.

    >>> balanced_microbatch(60, 88)
    44
    """
    # Few rows are empty then, where an engine fills every micro-batch up to its size.
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
