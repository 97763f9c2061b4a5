"""What a row of the ledger is, and the kinds of rows there are."""

import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from privacy.errors import InvalidRequest

_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
)


def canonical(value: Any) -> str:
    """Return the only JSON text of `value`: keys sorted, no spaces, ASCII.

    Raises TypeError on a type that JSON does not have, or a key that is not a string, and
    ValueError on NaN or an infinity.
    """
    # Floats are written by `repr`, which reads back to the same float64.
    _refuse_foreign_keys(value)
    return _ENCODER.encode(value)


def parse(text: str) -> Any:
    """Read back what `canonical` wrote; raise ValueError on any other text."""
    value = json.loads(text)
    # Spaces, repeated or unsorted keys: two texts of one meaning would have two hashes. What was
    # read from JSON has no foreign keys, so `_ENCODER` suffices.
    if _ENCODER.encode(value) != text:
        raise ValueError("the JSON text is not in canonical form")
    return value


def _refuse_foreign_keys(value: Any) -> None:
    # The encoder would turn the keys 1 and "1" into the same text.
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a JSON key must be a string, found {type(key).__name__}")
            _refuse_foreign_keys(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_foreign_keys(inner)


# Raised when the meaning of a row or a column changes; kinds never change theirs, new ones come.
SCHEMA_VERSION = 3

_AUTHOR_LENGTH = 128
_SHA256 = re.compile("[0-9a-f]{64}")


class Kind(StrEnum):
    """The kinds of rows. A kind's meaning and its body's keys are fixed for ever.

    genesis: the first row. schema, ledger (random id), key (id of the fingerprint key).
    declare: a data set's whole budget. epsilon, delta.
    bind: this name means this content from now on; schema 1 only, where a data set had one
        part. fingerprint, records.
    reserve: a plan was admitted and its whole cost set aside. run, records, unit,
        records_per_unit, relation, fingerprint, void, accountant, spec, plan (list of name and
        mechanism, raw parameters, steps included).
    charge: steps of one component are spent, whatever happens next. component, steps, attempt,
        charged (steps of every component so far, this row included).
    settle: nothing more will be charged; what was not charged is free again. charged, and weights
        (sha256 of the file that the charges paid for) where there are some and who settled knew.
    export: something made under the reservation was exported. run, manifest, description,
        void, used (steps of every component that the exported data came out of).

    Since schema 2:

    migrate: the table and all later rows follow a newer schema. schema.
    signer: all later rows bear a signature by this Ed25519 key, until the next row of this kind,
        which the old key signs; the first is signed by its own. public_key (hex), possession
        (a signature by the new key, which shows that somebody has it).
    partition: a part of the data set means this content from now on. The parts of a data set
        share no record, so each may spend the whole budget. partition, fingerprint, records,
        sketch (keyed digests of a few records, by which other contents are compared).
    overlap: an officer accepts that the data set shares records with another: for those the two
        budgets add up. other.
    attempt: a start of the run; requests of older attempts are refused from now on. attempt.
    close: nothing more is admitted for the data set; what is reserved may still be charged.

    Since schema 3:

    order: the RDP order on which alone everything later is admitted, for ever. order; partition
        (null: every part of the data set); reason (declared: an officer chose it before any plan,
        plan: the part's first plan takes the smallest share of the budget at it, migration: so
        does what the part held when its ledger came from an older schema). Every reserve row has
        one before it.
    facts: an officer says, once and for ever, what the data set is. unit, records_per_unit, public
        (its images may be shown), public_holdout (those of its holdout may be).
    content: the records of a content, each by the first 64 bits of its keyed digest, by which any
        record that two contents share is found. fingerprint, records, digests (base64 of the
        different ones in ascending order, big-endian; records of one constant value left out).
    holdout: a run opens this content as its data set's holdout. run, fingerprint, records.
    """

    GENESIS = "genesis"
    DECLARE = "declare"
    BIND = "bind"
    RESERVE = "reserve"
    CHARGE = "charge"
    SETTLE = "settle"
    EXPORT = "export"
    MIGRATE = "migrate"
    SIGNER = "signer"
    PARTITION = "partition"
    OVERLAP = "overlap"
    ATTEMPT = "attempt"
    CLOSE = "close"
    ORDER = "order"
    FACTS = "facts"
    CONTENT = "content"
    HOLDOUT = "holdout"


@dataclass(frozen=True)
class Head:
    """The last row of the ledger at some moment: all rows up to it are fixed by its hash."""

    # Recorded outside the ledger (a checkpoint, an export), it shows a later truncation.
    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `seq:hash` as `str(head)` writes it. Raises InvalidRequest on anything else."""
        seq, _, digest = text.partition(":")
        if not seq.isascii() or not seq.isdigit() or not _SHA256.fullmatch(digest):
            raise InvalidRequest(
                f"A ledger head is written SEQ:HASH with 64 hex digits of SHA-256, found {text!r}."
            )
        return cls(int(seq), digest)


@dataclass(frozen=True)
class Row:
    """One row as it lies in the table."""

    seq: int  # 1, 2, 3, … without gaps
    kind: str  # one of `Kind`; kept as text, since a damaged ledger may hold anything
    # UTC, ISO 8601. Nothing is decided by it.
    created_at: str
    dataset: str | None  # the declared name that the row is about, if any
    reservation: str | None  # the reservation that the row belongs to, if any
    # A text that no two rows may share (an idempotency key, a name, a fingerprint).
    claim: str | None
    body: str  # canonical JSON
    prev_hash: str  # `hash` of the row before
    hash: str  # SHA-256 over all the columns above, and over the author where there is one
    # Who appended the row, as the process that did it says; None in schema 1.
    author: str | None = None
    # Ed25519 over `hash`, in hex; None where the ledger was not signed yet.
    signature: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        """The body as a dictionary. Raises ValueError where it is not one in canonical form."""
        value = parse(self.body)
        if not isinstance(value, dict):
            raise ValueError("the body is not a JSON object")
        return value

    @property
    def head(self) -> Head:
        """The head of the ledger at the moment when this row was its last."""
        return Head(self.seq, self.hash)

    def to_record(self) -> dict[str, Any]:
        """Return the row as plain JSON values, the body parsed."""
        return {**asdict(self), "body": self.content}


def checked_author(author: str | None) -> str | None:
    """Return `author` if a row may hold it; raise InvalidRequest otherwise."""
    if author is None or (
        isinstance(author, str)
        and author.isprintable()
        and author.strip()
        and len(author) <= _AUTHOR_LENGTH
    ):
        return author
    raise InvalidRequest(
        f"The author of ledger rows must be one printable line of at most {_AUTHOR_LENGTH} "
        f"characters, found {author!r}."
    )
