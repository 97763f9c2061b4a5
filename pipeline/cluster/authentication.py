"""Refuse Ray clusters that require no token: Ray runs the code of anyone who reaches it."""

import os
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from privacy.errors import UmbraError

OPEN_CLUSTER = "UMBRA_OPEN_CLUSTER"
_SECONDS = 10
_UNAUTHORISED = (401, 403)
_CLIENT_PORT, _GCS_PORT = 10001, 6379
# A cluster's settings cannot be read from outside, so a harmless request is sent without a token,
# which a cluster that requires one refuses. The client server listens at `ray://`.
_CLIENT_REQUEST = "/ray.rpc.RayletDriver/ClusterInfo"
_GCS_REQUEST = "/ray.rpc.NodeInfoGcsService/CheckAlive"


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
    refuses = _http_refuses if is_jobs_api(address) else _grpc_refuses
    if is_jobs_api(address) and "@" in urlsplit(address).netloc:
        raise UmbraError(
            "the address of a Jobs API is written to the run's folder and may hold no password: "
            "give a token instead (RAY_AUTH_TOKEN or ~/.ray/auth_token)"
        )
    if refuses is _grpc_refuses and os.environ.get("RAY_USE_TLS") == "1":
        return  # with mutual TLS the cluster knows its callers, too
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
        os.environ["RAY_AUTH_MODE"] = "token"


def _http_refuses(address: str, headers: dict[str, str]) -> bool:
    """Whether the Jobs API refuses to return its version."""
    request = urllib.request.Request(f"{address.rstrip('/')}/api/version", headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310 - http and https only
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

    client = address.startswith("ray://")
    host = address.removeprefix("ray://").split("/")[0]
    if address in {"auto", "local"}:
        host = _local_cluster(address)
    target = host if ":" in host else f"{host}:{_CLIENT_PORT if client else _GCS_PORT}"
    with grpc.insecure_channel(target) as channel:
        send: Any = channel.unary_unary(_CLIENT_REQUEST if client else _GCS_REQUEST)
        try:
            send(b"", timeout=_SECONDS, metadata=tuple(headers.items()))
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
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise UmbraError(
            f"the Ray cluster at {address} asks for a token, and there is none here: put it into "
            "RAY_AUTH_TOKEN, or into the file ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH"
        ) from None


def _unreachable(address: str, why: str) -> UmbraError:
    return UmbraError(
        f"the Ray cluster at {address} could not be reached ({why}). Check the address: "
        "http://HOST:8265 is a cluster's Jobs API, HOST:6379 or ray://HOST:10001 the cluster itself"
    )
