"""Queries of the ledger inside one transaction, and the append of a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Select, select, text

from privacy.errors import IntegrityBroken, InvalidRequest
from privacy.ledger.chain import GENESIS_PREV_HASH, Signer, broken, row_hash
from privacy.ledger.database import ADDED, COLUMNS, LEDGER
from privacy.ledger.rows import Head, Kind, Row, canonical

# Whatever columns there are: a reader must neither fail on a ledger of schema 1 nor miss the new
# columns of one that another process migrates meanwhile.
SELECT = select(text("*")).select_from(LEDGER)


def fetch(connection: Connection, query: Select[Any]) -> list[Row]:
    """Return the rows that `query`, made from `SELECT`, finds; unchecked."""
    result = connection.execute(query)
    names = COLUMNS if set(ADDED) <= set(result.keys()) else COLUMNS[: -len(ADDED)]
    return [Row(*found) for found in result.columns(*names)]


@dataclass(frozen=True)
class Terms:
    """What the newest rows of their kinds put in force."""

    schema: object  # the version that the ledger follows; any value in a damaged ledger
    public_key: str | None  # of the key that signs, None where rows are not signed


class View:
    """Indexed look-ups. Every row that is returned has been checked against its own hash."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def last_row(self) -> Row | None:
        """Return the row at the head, None while the ledger is being created."""
        return self._one(SELECT.order_by(LEDGER.c.seq.desc()).limit(1))

    def row(self, seq: int) -> Row | None:
        """Return the row of that number."""
        return self._one(SELECT.where(LEDGER.c.seq == seq))

    def by_claim(self, claim: str) -> Row | None:
        """Return the one row that bears this claim."""
        return self._one(SELECT.where(LEDGER.c.claim == claim))

    def of(self, kind: Kind, dataset: str | None = None) -> list[Row]:
        """Return the rows of one kind, of one data set if given, oldest first."""
        query = SELECT.where(LEDGER.c.kind == kind.value).order_by(LEDGER.c.seq)
        if dataset is not None:
            query = query.where(LEDGER.c.dataset == dataset)
        return [_checked(row) for row in fetch(self._connection, query)]

    def first_of(self, reservation: str) -> Row | None:
        """Return the row that opened a reservation."""
        query = SELECT.where(LEDGER.c.reservation == reservation)
        return self._one(query.order_by(LEDGER.c.seq).limit(1))

    def last_of(self, reservation: str, kinds: Sequence[Kind]) -> Row | None:
        """Return a reservation's newest row of one of `kinds`."""
        query = SELECT.where(
            LEDGER.c.reservation == reservation, LEDGER.c.kind.in_([k.value for k in kinds])
        )
        return self._one(query.order_by(LEDGER.c.seq.desc()).limit(1))

    def terms(self, strict: bool = True) -> Terms:
        """Return the schema and the signing key in force.

        Raises IntegrityBroken at a damaged row if `strict`; otherwise passes over it.
        """
        kinds = (Kind.GENESIS.value, Kind.MIGRATE.value, Kind.SIGNER.value)
        version, public_key = None, None
        query = SELECT.where(LEDGER.c.kind.in_(kinds)).order_by(LEDGER.c.seq)
        for row in fetch(self._connection, query):
            # Whoever reads to verify has to report all damage.
            if not strict and broken(row):
                continue
            body = _checked(row).content
            version = body.get("schema", version)
            public_key = body.get("public_key", public_key)
        return Terms(version, public_key)

    def require_ancestor(self, head: Head) -> None:
        """Raise IntegrityBroken where the ledger was rolled back to an older copy or replaced."""
        row = self.row(head.seq)
        if row is None or row.hash != head.hash:
            raise IntegrityBroken(
                f"The ledger no longer holds row {head.seq} as it was seen before: it was rolled "
                "back or replaced. Restore the newest copy, then run `umbra audit`."
            )

    def _one(self, query: Select[Any]) -> Row | None:
        found = fetch(self._connection, query)
        return _checked(found[0]) if found else None


class Transaction(View):
    """A view that holds the append lock: what it reads stays true until it commits."""

    def __init__(self, connection: Connection, ledger_id: str, author: str | None = None) -> None:
        super().__init__(connection)
        self._ledger_id = ledger_id
        self._author = author
        # Signs every row that is appended; None where rows are not signed.
        self.signer: Signer | None = None
        # Those appended here included; None while the ledger is created.
        self.newest = self.last_row()

    def append(
        self,
        kind: Kind,
        body: Mapping[str, Any],
        dataset: str | None = None,
        reservation: str | None = None,
        claim: str | None = None,
    ) -> Row:
        """Append one row; it is durable when the transaction has been left without an error."""
        seq, previous = 1, GENESIS_PREV_HASH
        if self.newest is not None:
            seq, previous = self.newest.seq + 1, self.newest.hash
        created_at = datetime.now(UTC).isoformat(timespec="microseconds")
        content = canonical(dict(body))
        columns = (seq, kind.value, created_at, dataset, reservation, claim, content, previous)
        row = Row(*columns, hash="", author=self._author)
        row = replace(row, hash=row_hash(row))
        if self.signer is not None:
            row = replace(row, signature=self.signer.sign(self._ledger_id, row.hash))
        self._connection.execute(LEDGER.insert(), [vars(row)])
        self.newest = row
        return row

    def hand_over(self, new: Signer) -> Row:
        """Append the row that puts a new signing key in force, and sign by it from then on."""
        claim = f"signer:{new.public_key}"
        if self.by_claim(claim) is not None:
            raise InvalidRequest(
                f"The signing key {new.public_key} was in force before and was replaced: whoever "
                "replaced it may have had to. Use a new one."
            )
        previous = GENESIS_PREV_HASH if self.newest is None else self.newest.hash
        self.signer = self.signer or new
        row = self.append(Kind.SIGNER, new.body(self._ledger_id, previous), claim=claim)
        self.signer = new
        return row


def _checked(row: Row) -> Row:
    problem = broken(row)
    if problem:
        raise IntegrityBroken(
            f"Row {row.seq} of the ledger is not as it was written: {problem}. Run `umbra audit`."
        )
    return row
