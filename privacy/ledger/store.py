"""The ledger: opening and creating it, transactions, streaming reads and verification."""

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sqlalchemy import URL, Connection, select

from privacy.errors import IntegrityBroken, InvalidRequest, LedgerUnavailable
from privacy.keys import key_id
from privacy.ledger import schema
from privacy.ledger.chain import Finding, replay
from privacy.ledger.engine import WRITES, clear_errors, connect, normalise
from privacy.ledger.rows import SCHEMA_VERSION, Head, Kind, Row
from privacy.ledger.schema import LEDGER
from privacy.ledger.view import Transaction, View

_PAGE = 1000


class Ledger:
    """Append-only rows, each holding the hash of the one before. Make one with `Ledger.open`.

    Safe to use from many processes and threads at once: the database serialises appends.

    Attributes:
        where: path or URL for messages, without a password.
        ledger_id: random, drawn when the ledger was created.
        key_id: tells which fingerprint key the ledger belongs to; reveals nothing of the key.
    """

    def __init__(self, url: URL, writable: bool) -> None:
        self._engine = connect(url)
        self._pid = os.getpid()
        self._path = Path(str(url.database)) if url.get_backend_name() == "sqlite" else None
        self.where = str(self._path or url.render_as_string(hide_password=True))
        self._writable = writable
        self._file: tuple[int, int] | None = None
        self._seen: Head | None = None
        self.ledger_id = ""
        self.key_id = ""

    @classmethod
    def open(cls, url: str | Path, key: bytes | None = None) -> Self:
        """Open the ledger at `url`; with the fingerprint key, create it where there is none.

        Args:
            url: path of a SQLite file or a PostgreSQL URL.
            key: from `load_or_create_key`. Without it the ledger can be read and verified, and
                nothing can be appended.

        Raises:
            LedgerUnavailable: where it cannot be reached, read or created, or was written by a
                newer version.
            InvalidRequest: where the key is not the one that the ledger was created with: under
                another key every data set would look new and get a fresh budget.
            IntegrityBroken: where its first row is damaged.
        """
        ledger = cls(normalise(url), writable=key is not None)
        with clear_errors(ledger.where):
            ledger._require_file(create=key is not None)
            genesis = ledger._genesis()
            if genesis is None and key is not None:
                genesis = ledger._create(key_id(key))
            ledger._file = _identity(ledger._path)
        if genesis is None:
            raise LedgerUnavailable(_no_ledger(ledger.where))
        ledger._accept(genesis, key)
        return ledger

    def head(self) -> Head:
        """Return the newest row's number and hash, to be recorded outside the ledger."""
        with self.reading() as view:
            row = view.last_row()
        if row is None:
            raise IntegrityBroken(f"The ledger at {self.where} has lost all its rows.")
        return row.head

    def rows(
        self,
        kind: Kind | None = None,
        dataset: str | None = None,
        reservation: str | None = None,
    ) -> Iterator[Row]:
        """Yield rows in order as they lie there, unchecked, a page in memory at a time.

        Each page is its own short transaction: rows never change, so together they are a
        consistent prefix, and a slow reader holds no lock.
        """
        query = select(LEDGER).order_by(LEDGER.c.seq).limit(_PAGE)
        if kind is not None:
            query = query.where(LEDGER.c.kind == kind.value)
        if dataset is not None:
            query = query.where(LEDGER.c.dataset == dataset)
        if reservation is not None:
            query = query.where(LEDGER.c.reservation == reservation)
        after: int | None = None
        while True:
            page_query = query if after is None else query.where(LEDGER.c.seq > after)
            with self._connection(writes=False) as connection:
                page = [Row(*found) for found in connection.execute(page_query)]
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].seq

    def verify(self, heads: Iterable[Head] = ()) -> list[Finding]:
        """Replay the whole chain and check the table around it; an empty list is a sound ledger.

        Args:
            heads: heads recorded outside the ledger. Only they can show that the newest rows were
                cut off, or that somebody wrote the whole chain anew.

        Raises:
            LedgerUnavailable: where it cannot be read at all. Damage is returned, not raised.
        """
        findings: list[Finding] = []
        try:
            with self._connection(writes=False) as connection:
                problems = schema.structural_problems(connection)
            findings += [Finding(None, problem) for problem in problems]
            findings += replay(self.rows(), heads)
        except IntegrityBroken as error:
            findings.append(Finding(None, str(error)))
        return findings

    def require_sound(self) -> None:
        """Verify everything before something new is granted.

        Raises:
            IntegrityBroken: on the first finding.
        """
        findings = self.verify(() if self._seen is None else (self._seen,))
        if findings:
            raise IntegrityBroken(
                f"The ledger at {self.where} is broken ({findings[0]}), so nothing is granted. "
                "Run `umbra audit` for all findings and restore a sound copy."
            )

    @contextmanager
    def reading(self) -> Iterator[View]:
        """Give indexed look-ups on one consistent state of the ledger."""
        with self._connection(writes=False) as connection:
            yield View(connection)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Hold the append lock: all appended rows become durable together, or none does.

        An exception inside rolls back and passes through.

        Raises:
            InvalidRequest: where the ledger was opened without its key.
            LedgerUnavailable: where it cannot be written. After a connection lost during the
                commit the rows may be there: repeat the call with the same idempotency key.
            IntegrityBroken: where it was rolled back or its last row was altered.
        """
        if not self._writable:
            raise InvalidRequest(f"The ledger at {self.where} was opened for reading only.")
        with self._connection(writes=True) as connection:
            transaction = Transaction(connection)
            if self._seen is not None:
                transaction.require_ancestor(self._seen)
            yield transaction
        if transaction.newest is not None:
            self._seen = transaction.newest.head

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _connection(self, writes: bool) -> Iterator[Connection]:
        with clear_errors(self.where):
            # Appends to a file that was unlinked succeed and are lost; only the inode tells.
            if self._file != _identity(self._path):
                raise LedgerUnavailable(
                    f"The ledger at {self.where} was deleted or replaced while it was open. "
                    "Restore it, run `umbra audit`, then repeat the command."
                )
            with self._begun(writes) as connection:
                yield connection

    @contextmanager
    def _begun(self, writes: bool) -> Iterator[Connection]:
        # A connection that two processes inherited from one fork would corrupt both.
        if os.getpid() != self._pid:
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        connection = self._engine.connect().execution_options(**{WRITES: writes})
        with connection, connection.begin():
            yield connection

    def _require_file(self, create: bool) -> None:
        if self._path is None:
            return
        if create:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        elif not self._path.exists():
            raise LedgerUnavailable(_no_ledger(self.where))

    def _genesis(self) -> Row | None:
        with self._begun(writes=False) as connection:
            return self._first_row(connection) if schema.exists(connection) else None

    def _first_row(self, connection: Connection) -> Row:
        # Table and first row were made in one transaction: there is never one without the other.
        row = View(connection).row(1)
        if row is None:
            raise IntegrityBroken(
                f"The ledger at {self.where} has lost its first row. Restore a sound copy."
            )
        return row

    def _create(self, identity: str) -> Row:
        with self._begun(writes=True) as connection:
            # Another process may have been faster while this one waited for the lock.
            if schema.exists(connection):
                return self._first_row(connection)
            schema.create(connection)
            body = {"schema": SCHEMA_VERSION, "ledger": secrets.token_hex(16), "key": identity}
            return Transaction(connection).append(Kind.GENESIS, body, claim="genesis")

    def _accept(self, genesis: Row, key: bytes | None) -> None:
        content = genesis.content
        if content.get("schema") != SCHEMA_VERSION:
            raise LedgerUnavailable(
                f"The ledger at {self.where} has schema version {content.get('schema')!r}, this "
                f"version of Umbra reads {SCHEMA_VERSION}. Use the version that wrote it."
            )
        self.ledger_id, self.key_id = str(content.get("ledger")), str(content.get("key"))
        if key is not None and key_id(key) != self.key_id:
            raise InvalidRequest(
                f"The ledger at {self.where} belongs to another fingerprint key (id "
                f"{self.key_id}, this one has {key_id(key)}): under a new key the same data would "
                "get a fresh budget. Put the ledger's own key file back."
            )


def _identity(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except FileNotFoundError:
        return (-1, -1)
    return (status.st_dev, status.st_ino)


def _no_ledger(where: str) -> str:
    return (
        f"There is no ledger at {where}. `umbra budget declare NAME --epsilon E --delta D` makes "
        "one with its first budget."
    )
