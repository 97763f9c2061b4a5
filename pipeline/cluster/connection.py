"""Joining a Ray cluster, or starting one inside this process that nobody else can reach."""

import fcntl
import ipaddress
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pipeline.cluster.abort import raised_if
from pipeline.cluster.reaper import reaped
from privacy.errors import UmbraError

NAMESPACE = "umbra"

# Read by Ray and by the workers it starts, so they are set before Ray is imported.
_QUIET = {
    # Starting takes 5 s, but a busy machine has been seen to need a minute. No signal breaks this
    # wait off, so that it is also how long a full disk goes untold that Ray met in starting.
    "RAY_raylet_start_wait_time_s": "90",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # It would take the controller's logger, which is silenced, for its own.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
# On Linux Ray turns 127.0.0.1 into the machine's outward address and listens on all of its
# interfaces; only with this switch does it stay on the loopback.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_ALONE = {
    **_LOOPBACK,
    # Watches for a cloud that takes machines back.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Processes are started when they are wanted: of those in stock one would stay idle.
    "RAY_prestart_worker_first_driver": "0",
    # Statistics that nobody reads here, and timers (ms) for other machines and for an autoscaler:
    # each wakes every process of the cluster up to twenty times a second.
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_io_context_monitor_probe_interval_ms": "10000",
    "RAY_io_context_event_loop_lag_collection_interval_ms": "60000",
    "RAY_object_manager_timer_freq_ms": "1000",
    "RAY_report_worker_backlog_interval_ms": "10000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "60",
    # Looks for workers that take too much memory or are idle, for garbage and for a full disk: soon
    # enough, where Ray would do it up to ten times a second.
    "RAY_memory_monitor_refresh_ms": "1000",
    "RAY_kill_idle_workers_interval_ms": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_local_fs_monitor_interval_ms": "1000",
    # Nobody brings a dead GCS back here: waiting a minute for it would only delay the word of it.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
_SOCKETS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # where workers exchange their sums
_FOLDERS = "umbra-ray-"
_OBJECT_STORE_BYTES = 200 * 1024**2


@contextmanager
def cluster(
    address: str | None, object_store_gib: float | None = None
) -> Iterator[dict[str, float]]:
    """Be connected to Ray for the block; an embedded cluster starts and ends with it.

    Worker output never reaches this terminal (`log_to_driver=False`): what workers print may come
    from private data. The embedded cluster listens on the loopback interface only, keeps its
    sockets and logs in a folder of its own with mode 0700, and removes it at the end. Its processes
    end with this one, even if this one is killed. The caller's handler of SIGTERM stays in force.

    Yields:
        What the cluster has in all, in Ray's names and units: "CPU", "GPU", "memory" (bytes), ...

    Args:
        address: of a running cluster, `ray://...` or `host:port`; None starts one here.
        object_store_gib: shared memory of the embedded cluster; None takes 200 MiB.

    Raises:
        UmbraError: the cluster cannot be reached or started, or this machine was lost to it.
    """
    os.environ.update(_QUIET)
    if address is None:
        os.environ.update(_ALONE | dict.fromkeys(_SOCKETS, _loopback_name()))
    elif _is_loopback(address):
        os.environ.update(_LOOPBACK)
    import ray

    from pipeline.cluster.lost_node import lost_node

    on_terminate = signal.getsignal(signal.SIGTERM)
    with nullcontext() if address else _own_folder() as folder:
        try:
            _join(_arguments(address, folder, object_store_gib), address)
            signal.signal(signal.SIGTERM, on_terminate)
            with raised_if(lost_node(), patience=0):
                yield {"GPU": 0.0, **ray.cluster_resources()}
        finally:
            ray.shutdown()


@contextmanager
def _own_folder() -> Iterator[str]:
    """Make a private folder for the block, and let no process outlive it."""
    with _private_folder() as folder, reaped(folder):
        yield folder


@contextmanager
def _private_folder() -> Iterator[str]:
    """Make a folder for the block, and remove those of processes that were killed in theirs.

    Ray's logs lie in it, and nobody knows what a library writes into them.
    """
    # Short, because a socket's name may have no more than 107 characters.
    folder = Path(tempfile.mkdtemp(prefix=_FOLDERS))
    with _locked(folder):
        for other in folder.parent.glob(f"{_FOLDERS}*"):
            with suppress(OSError), _locked(other):
                shutil.rmtree(other, ignore_errors=True)
        try:
            yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder; the system lets go of it when this process ends, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _join(arguments: dict[str, Any], address: str | None) -> None:
    import ray

    from pipeline.cluster.lean_node import lean_node, name_no_dashboard

    try:
        if address:
            ray.init(**arguments)
        else:
            with lean_node():
                ray.init(**arguments)
            name_no_dashboard()
    except Exception as error:
        where, advice = "an embedded Ray cluster", "Look whether memory and disk are free"
        if address:
            where = f"the Ray cluster at {address}"
            advice = "Check the address and that `ray status` answers there"
        raise UmbraError(
            f"{where} could not be joined: {type(error).__name__}: {_first_line(error)} {advice}; "
            "`umbra resume` tries again."
        ) from error
    if address is None:
        _require_loopback(ray.util.get_node_ip_address())


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


def _arguments(
    address: str | None, folder: str | None, object_store_gib: float | None
) -> dict[str, Any]:
    common: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": False,
        "configure_logging": True,
        "logging_level": logging.ERROR,
    }
    if address:
        return {**common, "address": address}
    store = int(object_store_gib * 1024**3) if object_store_gib else _OBJECT_STORE_BYTES
    return {
        **common,
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": store,
        "_temp_dir": folder,
    }


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or ["no reason given"])[0]
    return line.rstrip(".") + "."
