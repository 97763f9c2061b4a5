"""What a row of the ledger is, and the kinds of rows there are."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from privacy.errors import InvalidRequest
from privacy.ledger.canonical import parse

SCHEMA_VERSION = 1
"""Raised when the meaning of a row or a column changes; kinds never change theirs, new ones come"""


class Kind(StrEnum):
    """The kinds of rows. A kind's meaning and its body's keys are fixed for ever.

    genesis: the first row. schema, ledger (random id), key (id of the fingerprint key).
    declare: a data set's whole budget. epsilon, delta.
    bind: this name stands for this content from now on. fingerprint, records.
    reserve: a plan was admitted and its whole cost set aside. run, records, unit,
        records_per_unit, relation, fingerprint, void, accountant, spec, plan (list of name and
        mechanism, raw parameters, steps included).
    charge: steps of one component are spent, whatever happens next. component, steps, attempt,
        charged (steps of every component so far, this row included).
    settle: nothing more will be charged; what was not charged is free again. charged.
    export: something made under the reservation left the house. run, manifest, description,
        void, used (steps of every component that the exported data came out of).
    """

    GENESIS = "genesis"
    DECLARE = "declare"
    BIND = "bind"
    RESERVE = "reserve"
    CHARGE = "charge"
    SETTLE = "settle"
    EXPORT = "export"


@dataclass(frozen=True)
class Head:
    """The last row of the ledger at some moment: all rows up to it are fixed by its hash.

    Recorded outside the ledger (a checkpoint, an export), it shows a later truncation.
    """

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `seq:hash` as `str(head)` writes it. Raises InvalidRequest on anything else."""
        seq, _, digest = text.partition(":")
        if not seq.isascii() or not seq.isdigit() or not _is_sha256(digest):
            raise InvalidRequest(
                f"A ledger head is written SEQ:HASH with 64 hex digits of SHA-256, found {text!r}."
            )
        return cls(int(seq), digest)


@dataclass(frozen=True)
class Row:
    """One row as it lies in the table.

    Attributes:
        seq: 1, 2, 3, … without gaps.
        kind: one of `Kind`; kept as text, since a damaged ledger may hold anything.
        created_at: UTC, ISO 8601. Nothing is decided by it.
        dataset: the declared name that the row is about, if any.
        reservation: the reservation that the row belongs to, if any.
        claim: a text that no two rows may share (an idempotency key, a name, a fingerprint).
        body: canonical JSON.
        prev_hash: `hash` of the row before.
        hash: SHA-256 over all the columns above.
    """

    seq: int
    kind: str
    created_at: str
    dataset: str | None
    reservation: str | None
    claim: str | None
    body: str
    prev_hash: str
    hash: str

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


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)
