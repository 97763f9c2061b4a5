"""Whether a Ray cluster asks who calls. Ray runs any code of whoever reaches it, beside the images.

A cluster's own settings cannot be read from outside, so it is asked a harmless question without a
token: one that asks who calls refuses to answer.
"""

import os
import sys
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
# Neither changes anything. Of Ray's own ports the first is the client server's, `ray://`.
_CLIENT_QUESTION = "/ray.rpc.RayletDriver/ClusterInfo"
_GCS_QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def is_jobs_api(address: str | None) -> bool:
    """Whether an address is that of a cluster's Jobs API, and not of the cluster itself."""
    return address is not None and address.startswith(("http://", "https://"))


def require_token(address: str) -> None:
    """Refuse a cluster that answers whoever calls, and let Ray send the token to one that does not.

    Call it before Ray is imported. Clusters whose members show certificates to each other
    (RAY_USE_TLS) know who calls, too.

    Args:
        address: `http(s)://host:port` of the Jobs API, `ray://host:port`, `host:port` or "auto".

    Raises:
        UmbraError: nothing answers there, the cluster is open, or it refuses this token.
    """
    if is_jobs_api(address):
        guarded = _http_guarded(address)
    elif os.environ.get("RAY_USE_TLS") == "1":
        return
    else:
        guarded = _grpc_guarded(address)
    if guarded:
        if "ray" not in sys.modules:  # later it would no longer be read; `ray.init` sees to it then
            os.environ["RAY_AUTH_MODE"] = "token"
    elif os.environ.get(OPEN_CLUSTER) != "1":
        raise UmbraError(
            f"the Ray cluster at {address} asks nobody for a token: whoever reaches it can run "
            "code beside the private images. Start it with RAY_AUTH_MODE=token and give its token "
            f"to this process (RAY_AUTH_TOKEN or ~/.ray/auth_token); or set {OPEN_CLUSTER}=1 if "
            "nobody else can reach it"
        )


def _http_guarded(address: str) -> bool:
    if "@" in urlsplit(address).netloc:
        raise UmbraError(
            "the address of a Jobs API is noted in the run's folder and may hold no password: give "
            "a token instead (RAY_AUTH_TOKEN or ~/.ray/auth_token)"
        )
    if not _http_refuses(address, None):
        return False
    if _http_refuses(address, _token(address)):
        raise _refused(address)
    return True


def _http_refuses(address: str, token: str | None) -> bool:
    """Whether the Jobs API refuses to tell its version to the holder of `token`."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    question = urllib.request.Request(f"{address.rstrip('/')}/api/version", headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(question, timeout=_SECONDS):  # noqa: S310 - http and https only
            return False
    except urllib.error.HTTPError as error:
        if error.code in _UNAUTHORISED:
            return True
        raise _nothing(address, f"it answered HTTP {error.code}") from None
    except (OSError, ValueError) as error:
        raise _nothing(address, str(getattr(error, "reason", error))) from None


def _grpc_guarded(address: str) -> bool:
    target, question = _target(address)
    if not _grpc_refuses(address, target, question, None):
        return False
    if _grpc_refuses(address, target, question, _token(address)):
        raise _refused(address)
    return True


def _target(address: str) -> tuple[str, str]:
    """Return `host:port` and the question for what listens there."""
    if address.startswith("ray://"):
        host = address.removeprefix("ray://").split("/")[0]
        return host if ":" in host else f"{host}:{_CLIENT_PORT}", _CLIENT_QUESTION
    if address in {"auto", "local"}:
        address = _address_here(address)
    return address if ":" in address else f"{address}:{_GCS_PORT}", _GCS_QUESTION


def _address_here(address: str) -> str:
    """Return the cluster that Ray would take by itself, by the rules that `ray.init` documents."""
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    try:
        return Path("/tmp/ray/ray_current_cluster").read_text().strip()  # noqa: S108 - Ray's own
    except OSError:
        raise _nothing(address, "no Ray cluster runs on this machine") from None


def _grpc_refuses(address: str, target: str, question: str, token: str | None) -> bool:
    import grpc  # type: ignore[import-untyped]  # which Ray itself speaks

    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(target) as channel:
        ask: Any = channel.unary_unary(question)
        try:
            ask(b"", timeout=_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.UNAUTHENTICATED:
                return True
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise _nothing(address, "no answer") from None
    return False


def _token(address: str) -> str:
    """Return the token from where Ray looks for it, in its order."""
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


def _refused(address: str) -> UmbraError:
    return UmbraError(
        f"the Ray cluster at {address} refused the token of this process: take the cluster's own "
        "(RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)"
    )


def _nothing(address: str, why: str) -> UmbraError:
    return UmbraError(
        f"the Ray cluster at {address} could not be reached ({why}). Check the address: "
        "http://HOST:8265 is a cluster's Jobs API, HOST:6379 or ray://HOST:10001 the cluster itself"
    )
