"""The secret keys of an installation: of fingerprints and masks, and of the ledger's signatures."""

import hashlib
import hmac
import os
import secrets
import shlex
import stat
from pathlib import Path

from privacy.durable import create_file
from privacy.errors import IntegrityBroken, InvalidRequest, LedgerUnavailable, UmbraError
from privacy.validation import KEY_BYTES, key_bytes


def load_or_create_key(path: str | Path) -> bytes:
    """Return the 32-byte key in `path`, drawing it from the operating system where there is none.

    Of several processes that start at once exactly one creates the key and all return it.

    Raises:
        InvalidRequest: where others than the owner may read or write the file.
        IntegrityBroken: where it is not a regular file of 32 bytes.
        LedgerUnavailable: where it cannot be read or made.
    """
    path = Path(path).expanduser()
    try:
        if not os.path.lexists(path):
            create_file(path, secrets.token_bytes(KEY_BYTES), mode=0o600)
        with path.open("rb") as file:
            data, status = file.read(KEY_BYTES + 1), os.fstat(file.fileno())
    except (OSError, UmbraError) as error:
        raise LedgerUnavailable(
            f"The key file {path} cannot be read or made: "
            f"{getattr(error, 'strerror', None) or error}. Without it nothing private may run."
        ) from error
    if not stat.S_ISREG(status.st_mode) or len(data) != KEY_BYTES:
        raise IntegrityBroken(
            f"The key file {path} must be a regular file of {KEY_BYTES} bytes, found "
            f"{status.st_size}. Restore it from a copy: a new key would not fit the ledger."
        )
    if status.st_mode & 0o077:
        raise InvalidRequest(
            f"The key file {path} has mode {stat.S_IMODE(status.st_mode):04o}, so others than its "
            f"owner may use it; expected 0600. Run: chmod 600 {shlex.quote(str(path))}"
        )
    return data


def key_id(key: bytes) -> str:
    """Return a short public name of `key`: HMAC-SHA256 over a fixed text, 16 hex digits.

    Raises InvalidRequest where the key has not 32 bytes.
    """
    key_bytes(key)
    return hmac.digest(key, b"umbra key id 1", hashlib.sha256).hex()[:16]
