"""CUDA graphs: work on a GPU that is captured once and replayed as one launch.

A GPU starts hundreds of small kernels more slowly than it runs them; a graph starts all of them at
once. A replay repeats the captured kernels at the captured addresses and runs no Python.
"""

import warnings
from collections.abc import Callable

import torch

Work = Callable[[], None]
Capture = Callable[[Work, torch.device], Work]

_WARM_UP = 3


def capture(work: Work, device: torch.device) -> Work:
    """Return a function that repeats `work`, as one launch where the device has CUDA graphs.

    On another device, and where a GPU cannot capture the work (a warning says so), return `work`.
    It reads and writes tensors on `device` whose addresses stay, never waits for the device, and
    has no effect but on those tensors. Raises torch.OutOfMemoryError where there is no room for the
    work or for its graph; none is kept.

    >>> total = torch.zeros(2)
    >>> def work():
    ...     total.add_(1)
    >>> replay = capture(work, total.device)
    >>> replay()
    >>> total
    tensor([1., 1.])
    """
    if device.type != "cuda":
        return work
    with torch.cuda.device(device):
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                # Libraries set themselves up in their first calls.
                for _ in range(_WARM_UP):
                    work()
        finally:
            # After an error, too: kernels that were started still write to memory that is now free.
            current.wait_stream(side)
        return _captured(work)


def _captured(work: Work) -> Work:
    current, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    try:
        # Other threads of this process, such as NCCL's watchdog, may query the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if isinstance(error.__context__, torch.OutOfMemoryError):
            # Ending the capture failed because the memory had run out.
            raise error.__context__ from None
        failed = f"capturing a CUDA graph failed with {type(error).__name__}"
        warnings.warn(f"the GPU launches kernel by kernel: {failed}", RuntimeWarning, stacklevel=3)
        return work
    finally:
        # torch leaves the capture's own stream current where ending the capture fails.
        torch.cuda.set_stream(current)
    return graph.replay
