"""The secret keys of an installation: of fingerprints and masks, and of the ledger's signatures."""

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from privacy.errors import IntegrityBroken, InvalidRequest, LedgerUnavailable
from privacy.validation import KEY_BYTES, key_bytes


def load_or_create_key(path: str | Path) -> bytes:
    """Return the 32-byte key in `path`, drawing it from the operating system where there is none.

    The file is made under another name, synced and then linked to `path`, which fails where the
    path exists: of several processes that start at once exactly one makes the key, all return it,
    and a crash leaves either no key or a whole one.

    Raises:
        InvalidRequest: where others than the owner may read or write the file.
        IntegrityBroken: where it is not a regular file of 32 bytes.
        LedgerUnavailable: where it cannot be read or made.
    """
    path = Path(path).expanduser()
    try:
        if not os.path.lexists(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _create(path)
        return _load(path)
    except OSError as error:
        raise LedgerUnavailable(
            f"The key file {path} cannot be read or made: {error.strerror or error}. Without it "
            "nothing private may run."
        ) from error


def key_id(key: bytes) -> str:
    """Return a short public name of `key`: HMAC-SHA256 over a fixed text, 16 hex digits.

    Raises:
        InvalidRequest: where the key has not 32 bytes.
    """
    key_bytes(key)
    return hmac.digest(key, b"umbra key id 1", hashlib.sha256).hex()[:16]


def _create(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return  # another process made it first: theirs is the key
        _sync_folder(path.parent)
    finally:
        temporary.unlink()


def _load(path: Path) -> bytes:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        key = file.read(KEY_BYTES + 1)
    if not stat.S_ISREG(status.st_mode) or len(key) != KEY_BYTES:
        raise IntegrityBroken(
            f"The key file {path} must be a regular file of {KEY_BYTES} bytes, found "
            f"{status.st_size}. Restore it from a copy: a new key would not fit the ledger."
        )
    if status.st_mode & 0o077:
        raise InvalidRequest(
            f"The key file {path} has mode {stat.S_IMODE(status.st_mode):04o}, so others than its "
            f"owner may use it; expected 0600. Run: chmod 600 {path}"
        )
    return key


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
