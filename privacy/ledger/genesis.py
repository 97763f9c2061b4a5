"""The first row of a ledger: found, or made where there is no ledger and one may be begun."""

import secrets

from sqlalchemy import Connection

from privacy.errors import IntegrityBroken, LedgerUnavailable, NoLedger
from privacy.ledger import schema
from privacy.ledger.engine import Database, clear_errors
from privacy.ledger.rows import SCHEMA_VERSION, Kind, Row
from privacy.ledger.view import Transaction, View
from privacy.ledger.witness import Witness


def require_known(version: object, where: str) -> int:
    """Return the ledger's schema version if this code knows it.

    Raises:
        LedgerUnavailable: where it does not: rows of a newer version may mean anything.
    """
    if type(version) is int and 1 <= version <= SCHEMA_VERSION:
        return version
    raise LedgerUnavailable(
        f"The ledger at {where} has schema version {version!r}, this version of Umbra reads "
        f"{SCHEMA_VERSION}. Use the version that wrote it."
    )


def migrate(connection: Connection, transaction: Transaction) -> None:
    """Bring a ledger of schema 1 to schema 2, inside the transaction that holds the append lock.

    The columns and the row that says so become durable together: a crash leaves schema 1 or
    schema 2. The rows that are there are not touched, so all recorded heads stay true.
    """
    # Another process may have been faster while this one waited for the lock.
    if transaction.terms().schema == SCHEMA_VERSION:
        return
    schema.add_columns(connection)
    transaction.append(Kind.MIGRATE, {"schema": SCHEMA_VERSION}, claim=f"migrate:{SCHEMA_VERSION}")


def find(database: Database) -> Row:
    """Return the first row. Raises NoLedger where there is no ledger; makes no file."""
    with clear_errors(database.where):
        present = database.path is None or database.path.exists()
    if present:
        with database.begin(writes=False) as connection:
            if schema.exists(connection):
                return _first_row(connection, database.where)
    raise NoLedger(
        f"There is no ledger at {database.where}. `umbra budget declare NAME --epsilon E --delta "
        "D` makes one with its first budget."
    )


def find_or_create(
    database: Database, key_id: str, author: str | None, witness: Witness | None
) -> Row:
    """Return the first row, beginning a ledger where there is none; of many processes one does.

    Raises:
        IntegrityBroken: where there is none, and the witness saw one.
    """
    # Asked before the ledger is looked for, since a ledger is there before its witness is.
    witnessed = witness is not None and witness.exists()
    try:
        return find(database)
    except NoLedger:
        if witnessed:
            raise IntegrityBroken(
                f"This installation used a ledger at {database.where}, as its witness says, and "
                "there is none any more: a new one would make every budget whole again. Put the "
                "ledger back; if a new one is meant, move the witness away."
            ) from None
    if database.path is not None:
        with clear_errors(database.where):
            database.path.parent.mkdir(parents=True, exist_ok=True)
    with database.begin(writes=True) as connection:
        # Another process may have been faster while this one waited for the lock.
        if schema.exists(connection):
            return _first_row(connection, database.where)
        schema.create(connection)
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
