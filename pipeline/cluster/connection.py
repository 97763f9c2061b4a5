"""Joining a Ray cluster that asks for a token, or starting one here that nobody else can reach.

Ray runs the code of anyone who reaches it, so a cluster that requires no token is refused.
"""

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
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.cluster import calls
from pipeline.cluster.reaper import reaped
from pipeline.spec import Resources
from privacy.errors import UmbraError

NAMESPACE = "umbra"
OPEN_CLUSTER = "UMBRA_OPEN_CLUSTER"

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
# The system allows a socket's name 107 letters. Of these Ray's session takes 64 and ours 19.
_LONGEST_BASE = 107 - 64 - 19
_OBJECT_STORE_GIB = 200 / 1024
_GIB = 1024**3
_CHOSEN_BY_RAY = ("auto", "local")

_ANSWER_SECONDS = 10
_UNAUTHORISED = (401, 403)
# A cluster's settings cannot be read from outside, so a harmless request is sent without a token,
# which a cluster that requires one refuses. The client server listens at `ray://`.
_CLIENT = (10001, "/ray.rpc.RayletDriver/ClusterInfo")
_GCS = (6379, "/ray.rpc.NodeInfoGcsService/CheckAlive")


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
            # Ray has replaced the caller's handler.
            signal.signal(signal.SIGTERM, on_terminate)
            with calls.abort_when(calls.lost_node_condition(), grace_period=0):
                yield {"GPU": 0.0, **ray.cluster_resources()}
        finally:
            ray.shutdown()


@contextmanager
def _private_folder() -> Iterator[str]:
    """Make a folder for a cluster that ends with the block; remove those of killed processes."""
    # Private, because nobody knows what a library writes into Ray's logs.
    folder = Path(tempfile.mkdtemp(prefix=_FOLDERS, dir=socket_folder()))
    with _locked(folder):
        for other in folder.parent.glob(f"{_FOLDERS}*"):
            with suppress(OSError), _locked(other):
                shutil.rmtree(other, ignore_errors=True)
        try:
            with reaped(str(folder)):
                yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def socket_folder() -> Path:
    """Return the folder for an embedded cluster's own: the temporary one or, if it is long, /tmp.

    Raises:
        UmbraError: neither is short enough and can be written.
    """
    found = ["/tmp"]  # noqa: S108 - only a private folder is made in it
    with suppress(FileNotFoundError):  # no temporary folder can be used
        found.insert(0, tempfile.gettempdir())
    for base in found:
        if len(os.fsencode(base)) <= _LONGEST_BASE and calls.is_writable(Path(base)):
            return Path(base)
    raise UmbraError(
        f"Ray's sockets need a folder of at most {_LONGEST_BASE} letters that can be written, "
        f"found {' and '.join(found)}: set TMPDIR to a shorter one"
    )


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

    where, advice = f"the Ray cluster at {address}", "that `ray status` answers there"
    arguments: dict[str, Any] = {"address": address}
    if address is None:
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
        full_disk = calls.disk_write_error(Path(folder)) if folder else None
        raise full_disk or UmbraError(
            f"{where} could not be joined: {type(error).__name__}: {line}. Check {advice}; "
            "`umbra resume` tries again."
        ) from error
    if address is None:
        _require_loopback(ray.util.get_node_ip_address())
    if address is None or address in _CHOSEN_BY_RAY:
        # What was asked for its token before may have been another cluster.
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


def is_jobs_api(address: str | None) -> bool:
    """Whether an address is that of a cluster's Jobs API, and not of the cluster itself."""
    return address is not None and address.startswith(("http://", "https://"))


def require_token(address: str) -> None:
    """Refuse a cluster that requires no token, and have Ray send the token to one that does.

    Call it before Ray is imported. The address is `http(s)://host:port` of the Jobs API,
    `ray://host:port`, `host:port` or "auto".

    Raises:
        UmbraError: nothing answers there, the cluster is open, or it refuses this token.
    """
    if is_jobs_api(address):
        if "@" in urlsplit(address).netloc:
            raise UmbraError(
                "the address of a Jobs API is written to the run's folder and may hold no "
                "password: give a token instead (RAY_AUTH_TOKEN or ~/.ray/auth_token)"
            )
        refuses = _http_refuses
    else:
        # With mutual TLS the cluster knows its callers, too.
        if os.environ.get("RAY_USE_TLS") == "1":
            return
        refuses = _grpc_refuses
    if not refuses(address, {}):
        if os.environ.get(OPEN_CLUSTER) == "1":
            return
        raise UmbraError(
            f"the Ray cluster at {address} asks nobody for a token: whoever reaches it can run "
            "code beside the private images. Start it with RAY_AUTH_MODE=token and give its token "
            f"to this process (RAY_AUTH_TOKEN or ~/.ray/auth_token); or set {OPEN_CLUSTER}=1 if "
            "nobody else can reach it"
        )
    if refuses(address, {"authorization": f"Bearer {_token(address)}"}):
        raise UmbraError(
            f"the Ray cluster at {address} refused the token of this process: take the cluster's "
            "own (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)"
        )
    if "ray" not in sys.modules:  # later it would no longer be read; `ray.init` sees to it then
        os.environ.update(_TOKEN)


def _http_refuses(address: str, headers: dict[str, str]) -> bool:
    """Whether the Jobs API refuses to return its version."""
    request = urllib.request.Request(f"{address.rstrip('/')}/api/version", headers=headers)  # noqa: S310
    try:
        # http and https only, as `is_jobs_api` has found.
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS):  # noqa: S310
            return False
    except urllib.error.HTTPError as error:
        if error.code in _UNAUTHORISED:
            return True
        raise _unreachable(address, f"it answered HTTP {error.code}") from None
    except (OSError, ValueError) as error:
        raise _unreachable(address, str(getattr(error, "reason", error))) from None


def _grpc_refuses(address: str, headers: dict[str, str]) -> bool:
    """Whether the cluster, or its client server at `ray://`, refuses a request."""
    import grpc  # type: ignore[import-untyped]  # which Ray itself speaks

    port, request = _CLIENT if address.startswith("ray://") else _GCS
    host = address.removeprefix("ray://").split("/")[0]
    if address in _CHOSEN_BY_RAY:
        host = _local_cluster(address)
    with grpc.insecure_channel(host if ":" in host else f"{host}:{port}") as channel:
        send: Any = channel.unary_unary(request)
        try:
            send(b"", timeout=_ANSWER_SECONDS, metadata=tuple(headers.items()))
        except grpc.RpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise _unreachable(address, "no answer") from None
            return code is grpc.StatusCode.UNAUTHENTICATED
    return False


def _local_cluster(address: str) -> str:
    """Return the cluster that Ray would join by itself, by the rules that `ray.init` documents."""
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    temporary = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        return Path(temporary, "ray", "ray_current_cluster").read_text().strip()
    except OSError:
        raise _unreachable(address, "no Ray cluster runs on this machine") from None


def _token(address: str) -> str:
    """Return the token from where Ray looks for it, in the same order."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    try:
        return path.expanduser().read_text().strip()
    # RuntimeError: no home folder is known.
    except (OSError, UnicodeDecodeError, RuntimeError):
        raise UmbraError(
            f"the Ray cluster at {address} asks for a token, and there is none here: put it into "
            "RAY_AUTH_TOKEN, or into the file ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH"
        ) from None


def _unreachable(address: str, why: str) -> UmbraError:
    return UmbraError(
        f"the Ray cluster at {address} could not be reached ({why}). Check the address: "
        "http://HOST:8265 is a cluster's Jobs API, HOST:6379 or ray://HOST:10001 the cluster itself"
    )
