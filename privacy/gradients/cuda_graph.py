"""Work that a GPU is told once and does again and again: a CUDA graph of it.

A GPU starts hundreds of small kernels slower than it runs them; a graph starts all of them at once.
What it does again is what the device was told while it was captured, at the addresses of then, and
nothing of the Python around it.
"""

import warnings
from collections.abc import Callable

import torch

Work = Callable[[], None]
Replayable = Callable[[Work, torch.device], Work]

_WARM_UP = 3


def replayable(work: Work, device: torch.device) -> Work:
    """Return a function that does what `work` does to tensors, as one launch on a CUDA device.

    On another device, and where a GPU cannot capture it (a warning says so), that is `work` itself.

    Args:
        work: reads and writes tensors whose addresses stay, asks the device for no number and
            leaves nothing behind by other ways.
        device: where the tensors are.

    Raises:
        torch.OutOfMemoryError: there is no room for the work or for its graph; none is left.
    """
    if device.type != "cuda":
        return work
    with torch.cuda.device(device):
        _warm_up(work)
        return _captured(work)


def _warm_up(work: Work) -> None:
    """Let libraries set themselves up and ways be tried, which must not be captured."""
    own, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(own)
    try:
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                work()
    finally:
        # After an error, too: what was begun still writes to memory that others may get.
        own.wait_stream(aside)


def _captured(work: Work) -> Work:
    own, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    try:
        # Other threads of this process, such as NCCL's watchdog, may ask the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if isinstance(error.__context__, torch.OutOfMemoryError):
            # The end of the capture failed for it.
            raise error.__context__ from None
        warnings.warn(
            f"a GPU does its work kernel by kernel: capturing failed with {type(error).__name__}",
            RuntimeWarning,
            stacklevel=3,
        )
        return work
    finally:
        # A capture that fails to end leaves its own stream in place.
        torch.cuda.set_stream(own)
    return graph.replay
