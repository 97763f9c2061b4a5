"""Joining a Ray cluster, or starting one inside this process that nobody else can reach."""

import fcntl
import ipaddress
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pipeline.cluster.authentication import require_token
from pipeline.cluster.calls import abort_when, lost_node_condition
from pipeline.cluster.reaper import reaped
from pipeline.progress import run_periodically
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
_SECONDS = 3.0  # between two looks at what a run waits for
_LIMIT = 1000


@contextmanager
def cluster(
    address: str | None, object_store_gib: float | None = None
) -> Iterator[dict[str, float]]:
    """Be connected to Ray for the block; an embedded cluster starts and ends with it.

    Worker output never reaches this terminal (`log_to_driver=False`): what workers print may come
    from private data. The embedded cluster listens on the loopback interface only, requires a
    token, keeps its sockets and logs in a folder of its own with mode 0700, and removes it at the
    end. Its processes end with this one, even if this one is killed. The caller's handler of
    SIGTERM stays in force.

    Yields:
        What the cluster has in all, in Ray's names and units: "CPU", "GPU", "memory" (bytes), ...

    Args:
        address: of a running cluster, `ray://...` or `host:port`; None starts one here.
        object_store_gib: shared memory of the embedded cluster; None takes 200 MiB.

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
            signal.signal(signal.SIGTERM, on_terminate)
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
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **arguments)
    except Exception as error:
        line = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
        raise UmbraError(
            f"{where} could not be joined: {type(error).__name__}: {line}. Check {advice}; "
            "`umbra resume` tries again."
        ) from error
    if address is None:
        _require_loopback(ray.util.get_node_ip_address())
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

    Args:
        resources: what the spec asks for.
        available: of "CPU", "GPU" and "memory" (bytes), as Ray counts; a kind that is missing is
            not checked.

    Raises:
        UmbraError: there is too little of something: Ray would wait for it without end.
    """
    each = per_worker(resources)
    workers = 1 if resources.workers == "auto" else resources.workers
    for kind in each.keys() & available.keys():
        requested = workers * each[kind]
        if requested > available[kind]:
            unit, scale = ("GiB of memory", _GIB) if kind == "memory" else (f"{kind}s", 1)
            raise UmbraError(
                f"resources asks for {workers} training workers with "
                f"{each[kind] / scale:g} {unit} each, {requested / scale:g} in all, and this "
                f"machine has {available[kind] / scale:.3g}. Ask for less, or run on a Ray cluster "
                "that has as much, with --address"
            )


def per_worker(resources: Resources) -> dict[str, float]:
    """Return what one training worker holds, in Ray's names and units."""
    each: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        each["GPU"] = resources.gpus_per_worker
    if resources.memory_gib_per_worker:
        each["memory"] = resources.memory_gib_per_worker * _GIB
    return each


def this_machine() -> dict[str, float]:
    """Return how many processors and GPUs an embedded cluster could have, without starting one."""
    import torch

    return {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}


@contextmanager
def report_waiting(report: Callable[[str], Any]) -> Iterator[None]:
    """Report what this process's job waits for whenever that changes; "" while it has its room."""
    reported = ""

    def look() -> None:
        nonlocal reported
        # A cluster without a dashboard, or a busy one, does not answer; the run continues.
        with suppress(Exception):
            now = waiting_for()
            if now != reported:
                report(now)
                reported = now

    try:
        with run_periodically(look, _SECONDS):
            yield
    finally:
        if reported:
            report("")


def waiting_for() -> str:
    """Return what the job whose driver this process is waits for, or an empty string."""
    import ray
    from ray.util.state import list_actors, list_placement_groups, list_tasks

    job = ray.get_runtime_context().get_job_id()
    options: dict[str, Any] = {"limit": _LIMIT, "detail": True, "raise_on_missing_output": False}
    pending = [("creator_job_id", "=", job), ("state", "=", "PENDING")]
    for group in list_placement_groups(filters=pending, **options):
        bundles = [bundle["unit_resources"] for bundle in group.bundles]
        return _describe_wait(f"{len(bundles)} training workers", bundles[0])
    mine = ("job_id", "=", job)
    actors = [a for a in list_actors(filters=[mine], **options) if _sizes(a.required_resources)]
    if stuck := _blocked(actors, "PENDING_CREATION", "ALIVE"):
        return _describe_wait("workers", stuck.required_resources)
    tasks = [t for t in list_tasks(filters=[mine], **options) if t.type == "NORMAL_TASK"]
    if stuck := _blocked(tasks, "PENDING_NODE_ASSIGNMENT", "RUNNING"):
        return _describe_wait("tasks", stuck.required_resources)
    return ""


def _blocked(members: list[Any], waits: str, works: str) -> Any:
    """Return one that waits where none is at work, else None."""
    if any(member.state == works for member in members):
        return None
    return next((member for member in members if member.state == waits), None)


def _describe_wait(what: str, each: Mapping[str, float]) -> str:
    import ray

    free, total = ray.available_resources(), ray.cluster_resources()
    kinds = _sizes(each)
    asked = " and ".join(f"{size:g} {kind}" for kind, size in kinds.items())
    room = ", ".join(f"{free.get(k, 0):g} of {total.get(k, 0):g} {k}" for k in kinds)
    return f"it waits for room for {what} with {asked} each; {room} free on the cluster"


def _sizes(resources: Mapping[str, float] | None) -> dict[str, float]:
    """Return processors and GPUs alone: memory is in bytes, and the rest is Ray's own."""
    return {k: v for k, v in (resources or {}).items() if k in {"CPU", "GPU"} and v > 0}
