"""`resources.storage`: the place below which a run's checkpoints and its release lie.

<storage>/<run id>/release/       may be shared
<storage>/<run id>/checkpoints/   never leaves: the place itself has to be private
"""

import re
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from privacy.errors import InvalidRequest, UmbraError
from synth.atomic import write_bytes
from synth.place import ObjectPath, Place

_FORMS = (
    "resources.storage: an address s3://BUCKET/PREFIX, file:///FOLDER or an absolute folder that "
    "every machine of the cluster reaches was expected"
)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"(/[A-Za-z0-9._-]+)*/?")


def place(address: str) -> Place:
    """Return what an address names; nothing is opened or made.

    Raises:
        InvalidRequest: it is not an address of a known kind, or holds a credential; the text does
            not repeat one.
    """
    parts = urlsplit(address)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidRequest(
            "resources.storage holds more than a place: credentials and options never stand in a "
            "spec, which is copied to MLflow. They come from the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) or AWS's own configuration"
        )
    if parts.scheme == "s3":
        if not _BUCKET.fullmatch(parts.netloc):
            raise InvalidRequest(f"{_FORMS}, found {address!r}: that is no name of a bucket")
        if not _PREFIX.fullmatch(parts.path) or {".", ".."} & set(parts.path.split("/")):
            raise InvalidRequest(
                f"{_FORMS}, found {address!r}: a prefix is of letters, digits, '.', '_', '-', '/'"
            )
        return ObjectPath.at(address)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return Path(parts.path)
    if not parts.scheme and address.startswith("/"):
        return Path(address)
    raise InvalidRequest(f"{_FORMS}, found {address!r}")


def require_writable(storage: Place) -> None:
    """Write a small file and remove it again.

    Raises:
        UmbraError: that cannot be done, in words for a person and without a credential.
        InvalidRequest: what speaks to the store is not installed.
    """
    probe = storage / f".umbra-probe-{secrets.token_hex(4)}"
    try:
        if isinstance(storage, Path) and not storage.is_dir():
            raise UmbraError(
                f"resources.storage is {storage}, which is not a folder here: make it, or mount "
                "it at the same place on every machine"
            )
        write_bytes(probe, b"umbra")
        if probe.read_bytes() != b"umbra":
            raise UmbraError(f"resources.storage is {storage}, which gives back other bytes")
        probe.unlink()
    except OSError as error:
        raise UmbraError(
            f"resources.storage is {storage}, which cannot be written and read "
            f"({error.strerror or type(error).__name__})"
        ) from error
