"""A stand-in for a CUDA graph that any device has.

Like a graph it repeats the operations that ran while it was recorded, on the tensors of then,
and runs nothing of the Python around it; and what it made for itself is spoiled before it is made
again, as a graph's own memory may be.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.builders import tensors_in


def recorded(work, device):
    """Do `work`, recording it, and return what does it again; as `capture` of `cuda_graph`."""
    with _Recorder() as recorder:
        work()
    return recorder.replay


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self._calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, tensors_in(result)))
        return result

    @torch.no_grad()
    def replay(self):
        calls = [call for call in self._calls if not _is_view(call[0])]
        for func, _, _, results in calls:
            if not func._schema.is_mutable:
                for result in results:
                    result.fill_(torch.nan if result.is_floating_point() else 1)
        for func, args, kwargs, results in calls:
            again = tensors_in(func(*args, **kwargs))
            if not func._schema.is_mutable:
                for result, new in zip(results, again, strict=True):
                    result.copy_(new)


def _is_view(func):
    """Say whether its results lie in its arguments' memory: there is nothing to do again."""
    return func.is_view or func is torch.ops.aten._unsafe_view.default
