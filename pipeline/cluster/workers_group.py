"""How training workers find each other: sums cross the network between them and nobody else.

Ray Train would set the group up by itself, with a meeting point that listens on every interface of
the machine; this one listens where the cluster does, and for one worker there is none.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch.distributed
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore

from privacy.collective import Collective, ProcessGroup, SingleProcess


class NoGroup(TorchConfig):
    """Tells Ray Train to leave the process group to `workers_group`."""

    @property
    def backend_cls(self) -> type[Backend]:
        """A backend that does nothing."""
        return Backend


@contextmanager
def workers_group(gpus: float) -> Iterator[Collective]:
    """Join the workers of this training for the block; call it in every one of them.

    Args:
        gpus: that each worker holds; may be a part of one.
    """
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    if size == 1:
        yield SingleProcess()
        return
    torch.distributed.init_process_group(
        _backend(gpus), store=_meet(rank, size), rank=rank, world_size=size
    )
    yield ProcessGroup()
    # After an error Ray ends the processes; to take leave of one that hangs would hang, too.
    torch.distributed.destroy_process_group()


def _backend(gpus: float) -> str:
    # NCCL refuses two workers on one GPU, and gloo sums tensors on a GPU, too.
    return "nccl" if gpus >= 1 else "gloo"


def _meet(rank: int, size: int) -> TCPStore:
    if rank > 0:
        host, port = broadcast_from_rank_zero(None)
        return TCPStore(host, port, size, is_master=False)
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.create_server((host, 0), family=family)
    port = server.getsockname()[1]
    store = TCPStore(
        host,
        port,
        size,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=server.detach(),
    )
    broadcast_from_rank_zero((host, port))
    return store
