"""What may be asked of the ledger inside one transaction, and how a row is appended."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Select, select

from privacy.errors import IntegrityBroken
from privacy.ledger.canonical import canonical
from privacy.ledger.chain import GENESIS_PREV_HASH, broken, row_hash
from privacy.ledger.rows import Head, Kind, Row
from privacy.ledger.schema import LEDGER


class View:
    """Indexed look-ups. Every row that is returned has been checked against its own hash."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def last_row(self) -> Row | None:
        """Return the row at the head, None while the ledger is being created."""
        return self._one(select(LEDGER).order_by(LEDGER.c.seq.desc()).limit(1))

    def row(self, seq: int) -> Row | None:
        """Return the row of that number."""
        return self._one(select(LEDGER).where(LEDGER.c.seq == seq))

    def by_claim(self, claim: str) -> Row | None:
        """Return the one row that bears this claim."""
        return self._one(select(LEDGER).where(LEDGER.c.claim == claim))

    def of(self, kind: Kind, dataset: str | None = None) -> list[Row]:
        """Return the rows of one kind, of one data set if given, oldest first."""
        query = select(LEDGER).where(LEDGER.c.kind == kind.value).order_by(LEDGER.c.seq)
        if dataset is not None:
            query = query.where(LEDGER.c.dataset == dataset)
        return [_checked(Row(*found)) for found in self._connection.execute(query)]

    def first_of(self, reservation: str) -> Row | None:
        """Return the row that opened a reservation."""
        query = select(LEDGER).where(LEDGER.c.reservation == reservation)
        return self._one(query.order_by(LEDGER.c.seq).limit(1))

    def last_of(self, reservation: str, kinds: Sequence[Kind]) -> Row | None:
        """Return a reservation's newest row of one of `kinds`."""
        query = select(LEDGER).where(
            LEDGER.c.reservation == reservation, LEDGER.c.kind.in_([k.value for k in kinds])
        )
        return self._one(query.order_by(LEDGER.c.seq.desc()).limit(1))

    def _one(self, query: Select[Any]) -> Row | None:
        found = self._connection.execute(query).first()
        return None if found is None else _checked(Row(*found))


class Transaction(View):
    """A view that holds the append lock: what it reads stays true until it commits.

    Attributes:
        newest: the last row, those appended here included; None while the ledger is created.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
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
        text = canonical(dict(body))
        row = Row(seq, kind.value, created_at, dataset, reservation, claim, text, previous, "")
        row = replace(row, hash=row_hash(row))
        self._connection.execute(LEDGER.insert(), [vars(row)])
        self.newest = row
        return row

    def require_ancestor(self, head: Head) -> None:
        """Check that the ledger still holds what this process saw of it before.

        Raises:
            IntegrityBroken: where it was rolled back to an older copy or replaced.
        """
        row = self.newest
        if row is None or row.seq != head.seq:
            row = self.row(head.seq)
        if row is None or row.hash != head.hash:
            raise IntegrityBroken(
                f"The ledger no longer holds row {head.seq} as this process saw it: it was rolled "
                "back or replaced. Restore the newest copy, then run `umbra audit`."
            )


def _checked(row: Row) -> Row:
    problem = broken(row)
    if problem:
        raise IntegrityBroken(
            f"Row {row.seq} of the ledger is not as it was written: {problem}. Run `umbra audit`."
        )
    return row
