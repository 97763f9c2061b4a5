"""What the workers of one training run exchange: sums, and a number of the first one's."""

from typing import Protocol

import torch
from torch import Tensor


class Collective(Protocol):
    """The group of workers, seen from one of them."""

    rank: int  # of this worker, in [0, size)
    size: int

    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums over all workers, the same on each; every worker must call it."""
        ...

    def broadcast_from_rank0(self, value: int) -> int:
        """Return the value that rank 0 passed; every worker must call it."""
        ...


class SingleProcess:
    """A group of one worker."""

    rank, size = 0, 1

    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors unchanged."""
        return tensors

    def broadcast_from_rank0(self, value: int) -> int:
        """Return the value unchanged."""
        return value


class ProcessGroup:
    """The workers of torch's default process group (gloo or NCCL), which must be initialised."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        # NCCL exchanges what is on a GPU, and some of what workers exchange is made on the CPU.
        self._device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"

    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """All-reduce one flat float64 vector, so that a step costs one message."""
        flat = torch.cat([tensor.to(torch.float64).reshape(-1) for tensor in tensors.values()])
        summed = flat.to(self._device)
        torch.distributed.all_reduce(summed)
        parts = summed.to(flat.device).split([tensor.numel() for tensor in tensors.values()])
        pairs = zip(tensors.items(), parts, strict=True)
        return {name: part.reshape(tensor.shape) for (name, tensor), part in pairs}

    def broadcast_from_rank0(self, value: int) -> int:
        """Broadcast a whole number from rank 0."""
        message = torch.tensor([value], dtype=torch.int64, device=self._device)
        torch.distributed.broadcast(message, src=0)
        return int(message.item())
