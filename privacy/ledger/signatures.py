"""Ed25519 signatures over rows: who lacks the private key cannot write the history anew."""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.errors import InvalidRequest
from privacy.ledger.rows import Kind, Row, canonical
from privacy.validation import key_bytes

_PUBLIC_KEY = re.compile("[0-9a-f]{64}")
_SIGNATURE = re.compile("[0-9a-f]{128}")


@dataclass(frozen=True)
class Signer:
    """A private key that signs rows; its repr shows the public half only.

    Attributes:
        public_key: 32 bytes in hex.
    """

    public_key: str
    _private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Return the signer of a 32-byte seed. Raises InvalidRequest on another length."""
        key_bytes(seed)
        private = Ed25519PrivateKey.from_private_bytes(seed)
        return cls(private.public_key().public_bytes_raw().hex(), private)

    def sign(self, ledger_id: str, row_hash: str) -> str:
        """Return the signature, in hex, of the row with this hash."""
        return self._private.sign(_row_message(ledger_id, row_hash)).hex()

    def body(self, ledger_id: str, prev_hash: str) -> dict[str, str]:
        """Return the body of the row that names this key, to stand after the row `prev_hash`.

        The key signs it there: so a key that nobody has is not put in force, and an officer who
        pinned a key that has signed no other row yet can tell that the row was made with it.
        """
        message = _possession_message(ledger_id, prev_hash, self.public_key)
        return {"public_key": self.public_key, "possession": self._private.sign(message).hex()}


def checked_public_key(text: str) -> str:
    """Return `text` if it is a public key: 64 lower-case hex digits. Raises InvalidRequest."""
    if not isinstance(text, str) or not _PUBLIC_KEY.fullmatch(text):
        raise InvalidRequest(
            f"An Ed25519 public key is written as 64 lower-case hex digits, found {text!r}."
        )
    return text


def require_in_force(signer: Signer | None, in_force: str | None, where: str) -> None:
    """Refuse to append by a key that is not in force, or without the one that is.

    Raises:
        InvalidRequest: where the two differ; also where a key is here and none is in force, for
            whoever signs must not take a history from which the signatures were removed.
    """
    own = None if signer is None else signer.public_key
    if own == in_force:
        return
    if in_force is None:
        raise InvalidRequest(
            f"A signing key is here (public half {own}), and the ledger at {where} is not signed: "
            "either signing was never begun, or an unsigned ledger was put in its place. Run "
            "`umbra audit`, then begin signing or move the key away."
        )
    raise InvalidRequest(
        f"The rows of the ledger at {where} are signed by the key {in_force}, found "
        f"{'none' if own is None else own}. Put the signing key in force back, then repeat the "
        "command."
    )


class SignatureReplay:
    """Checks the signatures of all rows in their order: `feed` it every row, then ask `missing`.

    Args:
        pinned: a public key that was noted outside the ledger. Whoever writes the chain anew can
            name keys of their own in it, but has no signature by this one.
    """

    def __init__(self, pinned: str | None = None) -> None:
        self._pinned = None if pinned is None else checked_public_key(pinned)
        self._pinned_signed = False
        self._ledger_id = ""
        self._in_force: str | None = None

    def feed(self, row: Row) -> list[str]:
        """Take in one row whose hash fits its columns; return what is wrong with its signature."""
        problems = []
        if row.kind == Kind.GENESIS:
            self._ledger_id = str(row.content.get("ledger"))
        key = self._in_force
        if row.kind == Kind.SIGNER:
            body = row.content
            # Only the first has no key before it: it is signed by the one that it names.
            self._in_force = str(body.get("public_key"))
            key = key or self._in_force
            message = _possession_message(self._ledger_id, row.prev_hash, self._in_force)
            if not self._signed(self._in_force, str(body.get("possession")), message):
                problems.append("it names a signing key that nobody showed to have")
        if key is None:
            if row.signature is not None:
                problems.append("it bears a signature, and no key was in force yet")
        elif row.signature is None:
            problems.append("it bears no signature, although the ledger is signed")
        elif not self._signed(key, row.signature, _row_message(self._ledger_id, row.hash)):
            problems.append("its signature is not by the key in force: it was forged or altered")
        return problems

    def missing(self) -> str | None:
        """Return what is wrong with the whole, None where nothing is.

        The keys hand over one to the next, so once the pinned one has signed, the newest row is
        signed by it or by a key that it led to, or `feed` has said otherwise.
        """
        if self._pinned is None or self._pinned_signed:
            return None
        found = f"ends under the key {self._in_force}" if self._in_force else "is not signed"
        return (
            f"nothing is signed by the key {self._pinned}, and the ledger {found}: it was written "
            "anew, or the key is another ledger's"
        )

    def _signed(self, public_key: str, signature: str, message: bytes) -> bool:
        sound = is_signed(public_key, signature, message)
        self._pinned_signed = self._pinned_signed or (sound and public_key == self._pinned)
        return sound


def is_signed(public_key: str, signature: str, message: bytes) -> bool:
    """Return whether `signature` is the key's over `message`; False also on malformed texts."""
    # Only one text of a signature counts: bytes.fromhex would also take capitals and spaces.
    if not _PUBLIC_KEY.fullmatch(public_key) or not _SIGNATURE.fullmatch(signature):
        return False
    try:
        _loaded(public_key).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=16)
def _loaded(public_key: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))


# The leading texts keep the two messages apart from each other and from every other use of the
# key; the ledger's id keeps a row from being carried into another ledger under the same key.
def _row_message(ledger_id: str, row_hash: str) -> bytes:
    return canonical(["umbra ledger signature", 1, ledger_id, row_hash]).encode("ascii")


def _possession_message(ledger_id: str, prev_hash: str, public_key: str) -> bytes:
    return canonical(["umbra ledger signer", 1, ledger_id, prev_hash, public_key]).encode("ascii")
