"""Signing of the ledger's rows: the first key of a home, and the next one."""

from pathlib import Path

from pipeline.home import Home
from pipeline.ledger_access import LedgerAccess
from privacy.keys import load_or_create_key
from privacy.ledger import Ledger


def start_signing(home: Home) -> tuple[str, Path]:
    """Make a new Ed25519 key for the home and let every later row be signed by it.

    The new secret is on disk under another name before the ledger asks for it, and takes its place
    after: a crash in between leaves it there, and the repeated command goes on with it.

    Returns:
        The public key in hex, and the file of the secret.

    Raises:
        InvalidRequest: the ledger is signed by a key that is not here: only that one can hand over.
        NoLedger: there is none yet.
        LedgerUnavailable: the ledger or the key file cannot be written.
        IntegrityBroken: the ledger was rolled back or altered.
    """
    Ledger.open(home.ledger_url).close()  # a misspelt home must not get a ledger of its own
    ledger = LedgerAccess.of(home).open()
    fresh = home.signing_key_path.with_suffix(".next")
    public_key = ledger.start_signing(load_or_create_key(fresh))
    fresh.replace(home.signing_key_path)
    return public_key, home.signing_key_path
