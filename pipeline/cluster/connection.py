"""Joining a Ray cluster, or starting one inside this process that nobody else can reach."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from privacy.errors import UmbraError

NAMESPACE = "umbra"

# Read by Ray and by the workers it starts, so they are set before Ray is imported.
_QUIET = {
    # Starting takes 5 s, but a busy machine has been seen to need a minute.
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
_OBJECT_STORE_BYTES = 200 * 1024**2


@contextmanager
def cluster(address: str | None, object_store_gib: float | None = None) -> Iterator[None]:
    """Be connected to Ray for the block; an embedded cluster starts and ends with it.

    Worker output never reaches this terminal (`log_to_driver=False`): what workers print may come
    from private data. The embedded cluster listens on the loopback interface only, keeps its
    sockets and logs in a folder of its own with mode 0700, and removes it at the end.

    Args:
        address: of a running cluster, `ray://...` or `host:port`; None starts one here.
        object_store_gib: shared memory of the embedded cluster; None takes 200 MiB.

    Raises:
        UmbraError: the cluster cannot be reached or started.
    """
    os.environ.update(_QUIET)
    import ray

    # A short path: a socket's name may have no more than 107 characters.
    folder = None if address else tempfile.mkdtemp(prefix="umbra-")
    try:
        ray.init(**_arguments(address, folder, object_store_gib))
    except Exception as error:
        where = f"the Ray cluster at {address}" if address else "an embedded Ray cluster"
        raise UmbraError(
            f"{where} could not be joined: {type(error).__name__}: {_first_line(error)}. "
            "Check the address and that `ray status` answers there."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


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
        "_node_ip_address": "127.0.0.1",
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
