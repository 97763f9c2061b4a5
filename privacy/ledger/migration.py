"""Versions of the schema: which one a ledger follows, and the step from an older one."""

from sqlalchemy import Connection

from privacy.errors import LedgerUnavailable
from privacy.ledger import schema
from privacy.ledger.rows import SCHEMA_VERSION, Kind
from privacy.ledger.view import Transaction


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
