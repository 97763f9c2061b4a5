"""The hash of a row, its signature, the replay that finds what does not fit, and the witness."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.durable import write_file
from privacy.errors import IntegrityBroken, InvalidRequest, LedgerUnavailable, UmbraError
from privacy.ledger.rows import Head, Kind, Row, canonical
from privacy.validation import key_bytes

_PUBLIC_KEY = re.compile("[0-9a-f]{64}")
_SIGNATURE = re.compile("[0-9a-f]{128}")


@dataclass(frozen=True)
class Signer:
    """A private key that signs rows; its repr shows the public half only."""

    public_key: str  # 32 bytes in hex
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
        """Return the body of the row that names this key, to follow the row `prev_hash`."""
        # The key signs it there: so a key that nobody has is not put in force, and an officer who
        # pinned a key that has signed no other row yet can verify that the row was made with it.
        message = _possession_message(ledger_id, prev_hash, self.public_key)
        return {"public_key": self.public_key, "possession": self._private.sign(message).hex()}


def require_in_force(signer: Signer | None, in_force: str | None, where: str) -> None:
    """Raise InvalidRequest at a key that is not in force, or without the one that is."""
    own = None if signer is None else signer.public_key
    if own == in_force:
        return
    if in_force is None:
        # Whoever signs must not take a history from which the signatures were removed.
        raise InvalidRequest(
            f"The ledger at {where} is not signed, or was replaced, yet there is a signing key "
            f"(public half {own}). Run `umbra audit`, then begin signing or move the key away."
        )
    raise InvalidRequest(
        f"The ledger at {where} is signed by the key {in_force}, found {own or 'none'}. Put that "
        "signing key back, then repeat the command."
    )


class SignatureReplay:
    """Check the signatures of all rows in order: `feed` every row, then call `missing`.

    `pinned` is a public key that was noted outside the ledger.
    """

    # Whoever writes the chain anew can name keys of their own in it, but has no signature by the
    # pinned one.

    def __init__(self, pinned: str | None = None) -> None:
        if pinned is not None and not _PUBLIC_KEY.fullmatch(pinned):
            raise InvalidRequest(
                f"An Ed25519 public key is written as 64 lower-case hex digits, found {pinned!r}."
            )
        self._pinned = pinned
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
        """Return what is wrong with the whole, None where nothing is."""
        # The keys hand over one to the next, so once the pinned one has signed, the newest row is
        # signed by it or by a key that it led to, or `feed` has said otherwise.
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


GENESIS_PREV_HASH = "0" * 64


@dataclass(frozen=True)
class Finding:
    """Something broken. `seq` is the row it was found at, None where it is about the whole."""

    seq: int | None
    problem: str

    def __str__(self) -> str:
        return self.problem if self.seq is None else f"row {self.seq}: {self.problem}"


def row_hash(row: Row) -> str:
    """Return SHA-256, in hex, over every column of `row` but the hash itself and the signature.

    Raises TypeError where a column is of a wrong type, as only a tampered table can hold.
    """
    if type(row.seq) is not int:
        raise TypeError("seq is not an integer")
    for name in ("kind", "created_at", "body", "prev_hash", "hash"):
        if type(getattr(row, name)) is not str:
            raise TypeError(f"{name} is not text")
    for name in ("dataset", "reservation", "claim", "author", "signature"):
        if type(getattr(row, name)) not in (str, type(None)):
            raise TypeError(f"{name} is neither text nor null")
    # One JSON array, in which quotes, commas and null are escaped, so that two different rows never
    # share an encoding: in a plain concatenation text could move from one column to the next.
    before = [row.seq, row.kind, row.created_at, row.dataset, row.reservation, row.claim]
    after = [row.body, row.prev_hash]
    # The text keeps these hashes apart from any other use of SHA-256, the number the two encodings:
    # a row without an author is encoded as in schema 1, so the rows of old ledgers keep theirs.
    parts = [1, *before, *after] if row.author is None else [2, *before, row.author, *after]
    return hashlib.sha256(canonical(["umbra ledger row", *parts]).encode("ascii")).hexdigest()


def broken(row: Row) -> str | None:
    """Return what is wrong with `row` taken alone, or None where its hash fits its columns."""
    try:
        if row_hash(row) != row.hash:
            return "its content does not match its hash: it was altered"
        row.content  # noqa: B018 - raises where the body is not a canonical object
    except (TypeError, ValueError) as error:
        return f"it cannot be read: {error}"
    return None


def replay(
    rows: Iterable[Row], heads: Iterable[Head] = (), public_key: str | None = None
) -> Iterator[Finding]:
    """Walk the whole chain once, in the order of `seq`, and yield everything that is broken.

    `rows` are all from the first; `heads` and `public_key`, the signing key, were noted outside.
    """
    signatures = SignatureReplay(public_key)
    # A head that is not met shows that rows were cut off or rewritten.
    awaited: defaultdict[int, set[str]] = defaultdict(set)
    for head in heads:
        awaited[head.seq].add(head.hash)
    seq, previous = 0, GENESIS_PREV_HASH
    for row in rows:
        problem = broken(row)
        problems = [problem] if problem else signatures.feed(row)
        yield from (Finding(row.seq, problem) for problem in problems)
        if row.seq != seq + 1:
            yield Finding(row.seq, f"row {seq + 1} was expected here: rows are missing or moved")
        if row.prev_hash != previous:
            yield Finding(row.seq, "it does not follow from the row before it: the chain is cut")
        if (row.kind == Kind.GENESIS) != (seq == 0):
            yield Finding(row.seq, f"a row of kind {row.kind!r} cannot stand here")
        for digest in awaited.pop(row.seq, ()):
            if digest != row.hash:
                yield Finding(row.seq, "a head recorded outside names another row: history changed")
        seq, previous = row.seq, row.hash
    if seq == 0:
        yield Finding(None, "the ledger has no rows, not even its first")
    for missing in sorted(awaited):
        yield Finding(
            None, f"a head recorded outside is row {missing}, which is gone: rows were cut off"
        )
    unsigned = signatures.missing()
    if unsigned:
        yield Finding(None, unsigned)


@dataclass(frozen=True)
class Witness:
    """The newest head that an installation saw, in a file outside the database.

    One line, `LEDGER_ID SEQ:HASH`: an older copy put in the ledger's place does not fit it.
    """

    # Written after the commit, so it never names a row that the ledger does not hold. It may well
    # name an older one: after a crash between commit and writing, or where two writers end in the
    # other order than they committed. An older head is still an ancestor of every later one, so
    # that is never a false alarm; a rollback is seen unless it goes back no further than there.
    path: Path

    def head(self, ledger_id: str) -> Head | None:
        """Return the head that the ledger must still hold; None where nothing was seen yet.

        Raises IntegrityBroken where the file is damaged, or another ledger was seen, and
        LedgerUnavailable where it cannot be read.
        """
        try:
            line = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        try:
            seen, head = line.decode("ascii").removesuffix("\n").split(" ")
            parsed = Head.parse(head)
        except (ValueError, InvalidRequest) as error:
            raise IntegrityBroken(
                f"{self.path} must hold the ledger's id and newest head. Run `umbra audit`; "
                "if it finds nothing broken and the ledger is not an older copy, delete the file."
            ) from error
        if seen != ledger_id:
            raise IntegrityBroken(
                f"This installation used the ledger {seen} ({self.path}), found {ledger_id}: every "
                "budget would be whole again. Put the ledger back or move that file away."
            )
        return parsed

    def seen(self) -> str:
        """Say in words what was seen of the ledger before, as far as the file can be read."""
        try:
            ledger_id, head = self.path.read_text("ascii").split()
            return f"{self.path} saw the ledger {ledger_id} up to row {Head.parse(head).seq}"
        except (OSError, ValueError, InvalidRequest):
            return f"{self.path} saw one before, and cannot be read"

    def exists(self) -> bool:
        """Return whether a ledger was seen here before, readable or not."""
        return os.path.lexists(self.path)

    def record(self, ledger_id: str, head: Head) -> None:
        """Write the newest head. Raises LedgerUnavailable where it cannot be written."""
        # Not synced: a power cut may bring back an older head, which is an ancestor as said above,
        # and a charge must not wait for the disk twice.
        try:
            write_file(self.path, f"{ledger_id} {head}\n".encode("ascii"), sync=False)
        except (OSError, UmbraError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> LedgerUnavailable:
        return LedgerUnavailable(
            f"{self.path}, which keeps the ledger's newest head, cannot be read or written: "
            f"{getattr(error, 'strerror', None) or error}. Without it an older copy of the ledger "
            "would not be noticed. Make it readable and writable, then repeat the command."
        )
