"""The hash of a row, and the replay that finds what does not fit."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from privacy.ledger.rows import Head, Kind, Row, canonical
from privacy.ledger.signatures import SignatureReplay

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

    The columns are hashed as one JSON array: quotes, commas and null are escaped by JSON, so two
    different rows never share an encoding (a plain concatenation would let text move from one
    column to the next). The leading text keeps these hashes apart from any other use of SHA-256.
    A row without an author is encoded as in schema 1, so the rows of old ledgers keep their hashes;
    the number after the text keeps the two encodings apart.

    Raises:
        TypeError: where a column is of a wrong type, as only a tampered table can hold.
    """
    if type(row.seq) is not int:
        raise TypeError("seq is not an integer")
    for name in ("kind", "created_at", "body", "prev_hash", "hash"):
        if type(getattr(row, name)) is not str:
            raise TypeError(f"{name} is not text")
    for name in ("dataset", "reservation", "claim", "author", "signature"):
        if type(getattr(row, name)) not in (str, type(None)):
            raise TypeError(f"{name} is neither text nor null")
    before = [row.seq, row.kind, row.created_at, row.dataset, row.reservation, row.claim]
    after = [row.body, row.prev_hash]
    if row.author is None:
        encoded = canonical(["umbra ledger row", 1, *before, *after])
    else:
        encoded = canonical(["umbra ledger row", 2, *before, row.author, *after])
    return hashlib.sha256(encoded.encode("ascii")).hexdigest()


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

    Args:
        rows: all rows from the first.
        heads: heads recorded outside; each must be met on the way, else rows were cut off or the
            history was written anew.
        public_key: a signing key noted outside, which the history must have been signed by.
    """
    signatures = SignatureReplay(public_key)
    awaited: dict[int, set[str]] = {}
    for head in heads:
        awaited.setdefault(head.seq, set()).add(head.hash)
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
