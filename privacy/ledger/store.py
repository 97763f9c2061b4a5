"""The ledger: opening and creating it, transactions, streaming reads and verification."""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from sqlalchemy import URL, Connection

from privacy.errors import IntegrityBroken, InvalidRequest, LedgerUnavailable, NoLedger
from privacy.keys import key_id
from privacy.ledger import database as db
from privacy.ledger.chain import Finding, Signer, Witness, replay, require_in_force
from privacy.ledger.rows import SCHEMA_VERSION, Head, Kind, Row, checked_author
from privacy.ledger.view import SELECT, Transaction, View, fetch


def require_known(version: object, where: str) -> int:
    """Return a known schema version; raise LedgerUnavailable on others: rows may mean anything."""
    if type(version) is int and 1 <= version <= SCHEMA_VERSION:
        return version
    raise LedgerUnavailable(
        f"The ledger at {where} has schema version {version!r}, this version of Umbra reads "
        f"{SCHEMA_VERSION}. Use the version that wrote it."
    )


def migrate(connection: Connection, transaction: Transaction) -> None:
    """Bring a ledger to the newest schema, inside the transaction that holds the append lock."""
    # The columns and the rows that say so become durable together: a crash leaves the old schema
    # or the new one. The rows that are there are not touched, so all recorded heads stay true.
    db.add_columns(connection)
    # Another process may have been faster while this one waited for the lock.
    schema = transaction.terms().schema
    for version in range(int(str(schema)) + 1, SCHEMA_VERSION + 1):
        transaction.append(Kind.MIGRATE, {"schema": version}, claim=f"migrate:{version}")


def find(database: db.Database, witness: Witness | None) -> Row:
    """Return the first row; makes no file.

    Raises NoLedger where there is no ledger, and IntegrityBroken where the witness saw one.
    """
    # The witness first: a ledger exists before its witness does.
    witnessed = witness is not None and witness.exists()
    with db.clear_errors(database.where):
        # A file that was emptied is no ledger, whatever its log or a driver makes of it.
        path = database.path
        present = path is None or (path.exists() and path.stat().st_size > 0)
    if present:
        with database.begin(writes=False) as connection:
            if db.has_table(connection):
                return _first_row(connection, database.where)
    if witness is not None and witnessed:
        raise IntegrityBroken(
            f"The ledger at {database.where} is gone or was emptied: {witness.seen()}. A new one "
            "would make every budget whole again. Put the ledger back; if a new one is meant, "
            "move the witness away."
        )
    raise NoLedger(
        f"There is no ledger at {database.where}. `umbra budget declare NAME --epsilon E --delta D "
        "--private` (or --public; --public-holdout where only the holdout is) makes one with its "
        "first budget."
    )


def find_or_create(
    database: db.Database, key_id: str, author: str | None, witness: Witness | None
) -> Row:
    """Return the first row, beginning a ledger where there is none; of many processes one does.

    Raises IntegrityBroken where there is none, and the witness saw one.
    """
    with suppress(NoLedger):
        return find(database, witness)
    if database.path is not None:
        with db.clear_errors(database.where):
            database.path.parent.mkdir(parents=True, exist_ok=True)
    with database.begin(writes=True) as connection:
        # Another process may have been faster while this one waited for the lock.
        if db.has_table(connection):
            return _first_row(connection, database.where)
        db.create_table(connection)
        ledger_id = secrets.token_hex(16)
        body = {"schema": SCHEMA_VERSION, "ledger": ledger_id, "key": key_id}
        return Transaction(connection, ledger_id, author).append(
            Kind.GENESIS, body, claim="genesis"
        )


def _first_row(connection: Connection, where: str) -> Row:
    # Table and first row were made in one transaction: there is never one without the other.
    row = View(connection).row(1)
    if row is None:
        raise IntegrityBroken(
            f"The ledger at {where} has lost its first row. Restore a sound copy."
        )
    return row


_PAGE = 1000


class Ledger:
    """Append-only rows, each holding the hash of the one before. Make one with `Ledger.open`.

    Safe to use from many processes and threads at once: the database serialises appends.
    """

    def __init__(
        self, url: URL, author: str | None, signer: Signer | None, witness: Witness | None
    ) -> None:
        self._database = db.Database(url)
        # Path or URL for messages, without a password.
        self.where = self._database.where
        self._author = checked_author(author)
        self._signer = signer
        self._witness = witness
        self._writable = False
        self._seen: Head | None = None
        # Random, drawn when the ledger was created.
        self.ledger_id = ""
        # Names the fingerprint key that the ledger belongs to; reveals nothing of it.
        self.key_id = ""

    @classmethod
    def open(
        cls,
        url: str | Path,
        key: bytes | None = None,
        *,
        signing_key: bytes | None = None,
        author: str | None = None,
        witness: Path | None = None,
    ) -> Self:
        """Open the ledger at `url`; with the fingerprint key, create or migrate it as needed.

        Args:
            url: path of a SQLite file or a PostgreSQL URL.
            key: from `load_or_create_key`. Without it the ledger, as it is, can only be read.
            signing_key: 32-byte Ed25519 seed; needed to append where the ledger is signed.
            author: who is written beside every row: printable text, at most 128 characters.
            witness: file outside the database that keeps the newest head seen here.

        Raises:
            NoLedger: where there is none and none may be made.
            LedgerUnavailable: where it cannot be reached, or a newer version wrote it.
            InvalidRequest: where the key is not the one that the ledger was created with.
            IntegrityBroken: where its first row is damaged, or the witness saw another ledger or
                a longer one.
        """
        signer = None if signing_key is None else Signer.from_seed(signing_key)
        seen = None if witness is None else Witness(Path(witness))
        ledger = cls(db.normalise(url), author, signer, seen)
        if key is None:
            first = find(ledger._database, seen)
        else:
            first = find_or_create(ledger._database, key_id(key), ledger._author, seen)
            ledger._writable = True
        ledger._database.hold_file()
        ledger._accept(first, key)
        return ledger

    @property
    def public_key(self) -> str | None:
        """The key, in hex, that rows are signed with now; None where they are not signed."""
        with self.reading() as view:
            return view.terms().public_key

    def start_signing(self, signing_key: bytes) -> str:
        """Have all later rows signed by this key; return its public half, to be noted elsewhere.

        From then on no process can append without it. The same key again changes nothing. Raises
        InvalidRequest where the key in force is not here, or the new one was replaced before.
        """
        new = Signer.from_seed(signing_key)
        with self._appending() as transaction:
            in_force = transaction.terms().public_key
            if in_force != new.public_key:
                if in_force is not None:
                    require_in_force(self._signer, in_force, self.where)
                    transaction.signer = self._signer
                transaction.hand_over(new)
        self._signer = new
        return new.public_key

    def head(self) -> Head:
        """Return the newest row's number and hash, to be recorded outside the ledger."""
        with self.reading() as view:
            row = view.last_row()
        if row is None:
            raise IntegrityBroken(f"The ledger at {self.where} has lost all its rows.")
        return row.head

    def rows(
        self, kind: Kind | None = None, dataset: str | None = None, reservation: str | None = None
    ) -> Iterator[Row]:
        """Yield rows in order as they lie there, unchecked, a page in memory at a time."""
        # Each page is its own short transaction: rows never change, so together they are a
        # consistent prefix, and a slow reader holds no lock.
        query = SELECT.order_by(db.LEDGER.c.seq).limit(_PAGE)
        for column, value in (("kind", kind), ("dataset", dataset), ("reservation", reservation)):
            if value is not None:
                query = query.where(db.LEDGER.c[column] == str(value))
        page_query = query
        while True:
            with self._database.begin(writes=False) as connection:
                page = fetch(connection, page_query)
            yield from page
            if len(page) < _PAGE:
                return
            page_query = query.where(db.LEDGER.c.seq > page[-1].seq)

    def verify(self, heads: Iterable[Head] = (), public_key: str | None = None) -> list[Finding]:
        """Replay the whole chain and check the table around it; an empty list is a sound ledger.

        Only `heads` recorded outside, and the witness if the ledger was opened with one, can show
        that the newest rows were cut off. `public_key`, in hex, noted outside, or a key that it
        handed over to, must have signed the newest row: nobody can rewrite the chain without it.

        Raises InvalidRequest on a malformed `public_key`, and LedgerUnavailable where the ledger
        cannot be read at all. Damage is returned, not raised.
        """
        heads, findings = list(heads), []
        try:
            # Read before the rows, so that it cannot name one that came after they were read.
            heads += self._witnessed()
        except IntegrityBroken as error:
            findings.append(Finding(None, str(error)))
        try:
            with self._database.begin(writes=False) as connection:
                problems = db.structural_problems(connection)
            findings += [Finding(None, problem) for problem in problems]
            findings += replay(self.rows(), heads, public_key)
        except IntegrityBroken as error:
            findings.append(Finding(None, str(error)))
        return findings

    def require_sound(self) -> None:
        """Verify everything before something new is granted.

        Raises IntegrityBroken on the first finding.
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
        with self._database.begin(writes=False) as connection:
            yield View(connection)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Hold the append lock: all appended rows become durable together, or none does.

        An exception inside rolls back and passes through.

        Raises:
            InvalidRequest: where the ledger was opened without its key, or without the signing
                key in force, or with a signing key while it is not signed.
            LedgerUnavailable: where it cannot be written; after a connection lost during the commit
                the rows may be there all the same.
            IntegrityBroken: where it was rolled back or its last row was altered.
        """
        with self._appending() as transaction:
            terms = transaction.terms()
            require_known(terms.schema, self.where)
            require_in_force(self._signer, terms.public_key, self.where)
            transaction.signer = self._signer
            yield transaction

    def close(self) -> None:
        """Close all connections."""
        self._database.engine.dispose()

    @contextmanager
    def _appending(self) -> Iterator[Transaction]:
        """Hold the append lock; what is appended is not signed unless the caller sees to it."""
        if not self._writable:
            raise InvalidRequest(f"The ledger at {self.where} was opened for reading only.")
        with self._database.begin(writes=True) as connection:
            transaction = Transaction(connection, self.ledger_id, self._author)
            before = transaction.newest
            if self._seen is not None and (before is None or before.head != self._seen):
                transaction.require_ancestor(self._seen)
            yield transaction
        if transaction.newest is not None and transaction.newest.head != self._seen:
            self._saw(transaction.newest.head)

    def _migrate(self) -> None:
        with self._database.begin(writes=True) as connection:
            transaction = Transaction(connection, self.ledger_id, self._author)
            public_key = transaction.terms().public_key
            # Without the key in force nothing can be appended here, this row as little as another.
            if public_key == (self._signer and self._signer.public_key):
                transaction.signer = self._signer
                migrate(connection, transaction)

    def _saw(self, head: Head) -> None:
        if self._witness is not None:
            self._witness.record(self.ledger_id, head)
        self._seen = head

    def _witnessed(self) -> list[Head]:
        head = None if self._witness is None else self._witness.head(self.ledger_id)
        return [] if head is None else [head]

    def _accept(self, first: Row, key: bytes | None) -> None:
        content = first.content
        with self.reading() as view:
            version = require_known(view.terms(strict=False).schema, self.where)
        self.ledger_id, self.key_id = str(content.get("ledger")), str(content.get("key"))
        if key is None:
            return
        if key_id(key) != self.key_id:
            raise InvalidRequest(
                f"The ledger at {self.where} belongs to the fingerprint key {self.key_id}, found "
                f"{key_id(key)}, under which the same data would get a fresh budget. Put the "
                "ledger's own key file back."
            )
        for head in self._witnessed():
            with self.reading() as view:
                view.require_ancestor(head)
            self._seen = head
        if version < SCHEMA_VERSION:
            self._migrate()
        if self._seen is None:
            self._saw(self.head())
