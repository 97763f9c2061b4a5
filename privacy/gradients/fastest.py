"""Several ways to one result, of which a device's fastest is found by trying.

Which library kernel is fast depends on the card, its driver and the shapes, and no rule of thumb
holds for long. The choice has no influence on what is computed but for rounding.
"""

import math
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_ROUNDS = 3


class Fastest(Generic[Result]):
    """Calls the fastest of several ways; each is tried once for each kind of arguments.

    Tensors are of one kind if they agree in device, type and all but their first dimension, which
    counts records. A way that fails, be it for want of memory, is left out.
    """

    def __init__(self, *ways: Callable[..., Result]) -> None:
        """Take functions of the same arguments, tensors first, and of the same result."""
        self._ways = ways
        self._chosen: dict[tuple[Any, ...], Callable[..., Result]] = {}

    def __call__(self, *args: Any) -> Result:
        """Return the result of the way that is fastest for such arguments.

        While a CUDA graph is captured nothing can be timed: arguments of a kind that was not tried
        before go the first way, and the choice stays open.

        Raises:
            RuntimeError: every way failed, and the first of them so. None is chosen then, for with
                fewer records they may have memory enough.
        """
        kind = tuple(_kind(arg) for arg in args)
        if kind not in self._chosen:
            if _capturing(_device(args)):
                return self._ways[0](*args)
            self._chosen[kind] = self._fastest(args)
        return self._chosen[kind](*args)

    def _fastest(self, args: tuple[Any, ...]) -> Callable[..., Result]:
        seconds = [_seconds(way, args) for way in self._ways]
        if min(seconds) == math.inf:
            self._ways[0](*args)  # raises
        return self._ways[seconds.index(min(seconds))]


def _kind(arg: Any) -> Any:
    return (arg.device, arg.dtype, arg.shape[1:]) if isinstance(arg, Tensor) else arg


def _device(args: tuple[Any, ...]) -> torch.device:
    return next(arg.device for arg in args if isinstance(arg, Tensor))


def _capturing(device: torch.device) -> bool:
    # Builds for CPUs alone do not know the question.
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _seconds(way: Callable[..., Any], args: tuple[Any, ...]) -> float:
    """Return the least time of a few calls after a first one, or infinity if it fails."""
    device = _device(args)
    try:
        way(*args)
        return min(_one(way, args, device) for _ in range(_ROUNDS))
    except RuntimeError:
        return math.inf


def _one(way: Callable[..., Any], args: tuple[Any, ...], device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    way(*args)
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
