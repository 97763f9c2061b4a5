"""Joining a Ray cluster, or starting one inside this process that nobody else can reach."""

import fcntl
import ipaddress
import logging
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pipeline.cluster.authentication import require_token
from pipeline.cluster.calls import abort_when, disk_write_error, lost_node_condition
from pipeline.cluster.reaper import reaped
from pipeline.spec.sections import Resources
from privacy.errors import UmbraError

NAMESPACE = "umbra"

# Ray and the workers that it starts read these, so they are set before Ray is imported.
_EVERYWHERE = {
    # Ray would report the use of this machine to its makers.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Starting takes 5 s, but a busy machine was seen to need a minute: with Ray's own limit, 30 s,
    # runs fail there.
    "RAY_raylet_start_wait_time_s": "90",
    # Without it Ray warns on standard error, among our own lines, of how it will treat GPUs.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# On Linux Ray turns 127.0.0.1 into the machine's outward address and listens on all of its
# interfaces; only with this switch does it stay on the loopback.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Ray up to 2.59 asks for no token by default, and other users of this machine could run code here.
_TOKEN = {"RAY_AUTH_MODE": "token"}
_SOCKETS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # where workers exchange their sums
_FOLDERS = "umbra-ray-"
_OBJECT_STORE_GIB = 200 / 1024
_GIB = 1024**3


@contextmanager
def cluster(
    address: str | None, object_store_gib: float | None = None
) -> Iterator[dict[str, float]]:
    """Be connected to Ray for the block, and yield what there is: "CPU", "memory" (bytes), ...

    Without an address a cluster is started that ends with the block. It listens on the loopback
    interface only, requires a token, keeps its sockets and logs in a folder of its own with mode
    0700, and removes it. Its processes end with this one, even if this one is killed. Its shared
    memory is `object_store_gib`, by default 200 MiB.

    Raises:
        UmbraError: the cluster cannot be reached or started, or this machine was lost to it.
    """
    os.environ.update(_EVERYWHERE)
    if address is None:
        os.environ.update(_LOOPBACK | dict.fromkeys(_SOCKETS, _loopback_name()))
        if "ray" not in sys.modules:  # which reads it when it is imported, and only then
            os.environ.update(_TOKEN)
    elif _is_loopback(address):
        os.environ.update(_LOOPBACK)
    import ray

    on_terminate = signal.getsignal(signal.SIGTERM)
    with nullcontext() if address else _private_folder() as folder:
        try:
            _join(address, folder, object_store_gib)
            signal.signal(signal.SIGTERM, on_terminate)  # which Ray has replaced
            with abort_when(lost_node_condition(), grace_period=0):
                yield {"GPU": 0.0, **ray.cluster_resources()}
        finally:
            ray.shutdown()


@contextmanager
def _private_folder() -> Iterator[str]:
    """Make a folder for a cluster that ends with the block; remove those of killed processes."""
    # Private, because nobody knows what a library writes into Ray's logs.
    # Short, because a socket's name may have no more than 107 characters.
    folder = Path(tempfile.mkdtemp(prefix=_FOLDERS))
    with _locked(folder):
        for other in folder.parent.glob(f"{_FOLDERS}*"):
            with suppress(OSError), _locked(other):
                shutil.rmtree(other, ignore_errors=True)
        try:
            with reaped(str(folder)):
                yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder; the system releases it when this process ends, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _join(address: str | None, folder: str | None, object_store_gib: float | None) -> None:
    import ray

    if address:
        where, advice = f"the Ray cluster at {address}", "that `ray status` answers there"
        arguments: dict[str, Any] = {"address": address}
    else:
        where, advice = "an embedded Ray cluster", "that memory and disk are free"
        arguments = {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": int((object_store_gib or _OBJECT_STORE_GIB) * _GIB),
            # Ray's docstring lists it among the options that may change; there is no other way to
            # keep logs and sockets out of /tmp/ray, which others may read.
            "_temp_dir": folder,
        }
    try:
        # What workers print may come from private data: it does not reach this terminal.
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **arguments)
    except Exception as error:
        line = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
        full_disk = disk_write_error(Path(folder)) if folder else None
        raise full_disk or UmbraError(
            f"{where} could not be joined: {type(error).__name__}: {line}. Check {advice}; "
            "`umbra resume` tries again."
        ) from error
    if address is None:
        _require_loopback(ray.util.get_node_ip_address())
    if address in {None, "auto", "local"}:
        # Ray chose the cluster by itself: what was asked before may have been another one.
        require_token(ray.get_runtime_context().gcs_address)


def _loopback_name() -> str:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _require_loopback(address: str) -> None:
    if not ipaddress.ip_address(address).is_loopback:
        raise UmbraError(
            f"the embedded Ray cluster listens on {address}, where others may reach it, because "
            "this process imported Ray before Umbra could configure it: run Umbra in a process of "
            "its own"
        )


def require_room(resources: Resources, available: Mapping[str, float]) -> None:
    """Refuse training workers for which this machine has no room; "auto" needs room for one.

    Of what is `available` only the kinds that are listed are checked, as Ray names and counts them.

    Raises:
        UmbraError: there is too little of something: Ray would wait for it without end.
    """
    workers = 1 if resources.workers == "auto" else resources.workers
    for kind, each in per_worker(resources).items():
        if workers * each > available.get(kind, math.inf):
            unit, scale = ("GiB of memory", _GIB) if kind == "memory" else (f"{kind}s", 1)
            raise UmbraError(
                f"resources asks for {workers} training workers with {each / scale:g} {unit} each, "
                f"{workers * each / scale:g} in all, and this machine has "
                f"{available[kind] / scale:.3g}. Ask for less, or run on a Ray cluster that has as "
                "much, with --address"
            )


def per_worker(resources: Resources) -> dict[str, float]:
    """Return what one training worker holds, in Ray's names and units."""
    each = {
        "CPU": resources.cpus_per_worker,
        "GPU": resources.gpus_per_worker,
        "memory": (resources.memory_gib_per_worker or 0) * _GIB,
    }
    return {kind: size for kind, size in each.items() if size}


def this_machine() -> dict[str, float]:
    """Return how many processors and GPUs an embedded cluster could have, without starting one."""
    import torch

    return {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
