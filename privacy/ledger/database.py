"""The one table, and the triggers that let it only grow."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from privacy.errors import IntegrityBroken, InvalidRequest, LedgerUnavailable

# How long a transaction waits for the ones before it.
WAIT_S = 60
# Execution option of a connection whose transactions append.
WRITES = "umbra_writes"
# "umbra": the advisory lock that serialises appends on PostgreSQL.
_APPEND_LOCK = 0x756D627261

_EXPECTED = "expected the path of a SQLite file or postgresql://USER@HOST/DATABASE."

_RESTORE = "Restore it from a copy, then run `umbra audit`."
_DAMAGED = ("malformed", "not a database", "could not decode")


def normalise(url: str | Path) -> sa.URL:
    """Return the SQLAlchemy URL of a SQLite file or of PostgreSQL; raise InvalidRequest else."""
    if isinstance(url, Path) or "://" not in url:
        return sa.URL.create("sqlite", database=str(Path(url).expanduser().absolute()))
    try:
        parsed = sa.make_url(url)
    except ArgumentError as error:
        raise InvalidRequest(f"The ledger's URL cannot be read: {_EXPECTED}") from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and parsed.database not in (None, "", ":memory:") and not parsed.query:
        return sa.URL.create("sqlite", database=str(Path(str(parsed.database)).absolute()))
    shown = parsed.render_as_string(hide_password=True)
    raise InvalidRequest(f"The ledger cannot be kept in {shown!r}: {_EXPECTED}")


def connect(url: sa.URL) -> sa.Engine:
    """Return an engine whose commits are on disk when they return."""
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": WAIT_S}, hide_parameters=True)
        sa.event.listen(engine, "connect", _prepare_sqlite)
    else:
        options = f"-c synchronous_commit=on -c lock_timeout={WAIT_S * 1000}"
        try:
            engine = sa.create_engine(
                url,
                # What is read after the lock is what the last holder wrote.
                isolation_level="READ COMMITTED",
                pool_pre_ping=True,
                hide_parameters=True,
                # No prepared statements: they would outlive the table's columns in a migration.
                connect_args={"connect_timeout": 10, "options": options, "prepare_threshold": None},
            )
        except ModuleNotFoundError as error:
            raise LedgerUnavailable(
                "A ledger on PostgreSQL needs its driver: pip install 'umbra-synth[postgres]'."
            ) from error
    sa.event.listen(engine, "begin", _begin)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver would begin transactions by itself, and later than we need; `_begin` does it.
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous=FULL")
    deadline = time.monotonic() + WAIT_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            # SQLite does not wait for other processes here as it does elsewhere.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            if mode != "wal":
                raise sqlite3.OperationalError("no write-ahead log can be kept on this file system")


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
    elif writes:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_APPEND_LOCK})")


class Database:
    """The connections of one process to one ledger's database."""

    def __init__(self, url: sa.URL) -> None:
        self.engine = connect(url)
        # The file, None on PostgreSQL.
        self.path = Path(str(url.database)) if url.get_backend_name() == "sqlite" else None
        # Path or URL for messages, without a password.
        self.where = str(self.path or url.render_as_string(hide_password=True))
        self._pid = os.getpid()
        self._file: tuple[int, int] | None = None

    def hold_file(self) -> None:
        """Refuse from now on to work on another file than the one at `path`."""
        self._file = _identity(self.path)

    @contextmanager
    def begin(self, writes: bool) -> Iterator[sa.Connection]:
        """Yield a connection inside a transaction, committed where nothing is raised inside."""
        with clear_errors(self.where):
            # Appends to a file that was unlinked succeed and are lost; only the inode tells.
            if self._file is not None and self._file != _identity(self.path):
                raise LedgerUnavailable(
                    f"The ledger at {self.where} was deleted or replaced while it was open. "
                    "Restore it, run `umbra audit`, then repeat the command."
                )
            # A connection that two processes inherited from one fork would corrupt both.
            if os.getpid() != self._pid:
                self.engine.dispose(close=False)
                self._pid = os.getpid()
            connection = self.engine.connect().execution_options(**{WRITES: writes})
            with connection, connection.begin():
                yield connection


def _identity(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except FileNotFoundError:
        return (-1, -1)
    return (status.st_dev, status.st_ino)


@contextmanager
def clear_errors(where: str) -> Iterator[None]:
    """Raise IntegrityBroken where the database says that it is damaged, else LedgerUnavailable."""
    try:
        yield
    except UnicodeDecodeError as error:
        # The driver's own complaint could not be decoded: it quotes names out of the file.
        raise IntegrityBroken(
            f"The ledger at {where} is damaged: it holds text that cannot be decoded. {_RESTORE}"
        ) from error
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        if any(word in lines[0].lower() for word in _DAMAGED):
            raise IntegrityBroken(
                f"The ledger at {where} is damaged: {lines[0]}. {_RESTORE}"
            ) from error
        raise LedgerUnavailable(
            f"The ledger at {where} cannot be used: {lines[0]}. Without it nothing private may "
            "run. Make it reachable and writable, with room on its disk, then repeat the command."
        ) from error


metadata = sa.MetaData()

LEDGER = sa.Table(
    "umbra_ledger",
    metadata,
    sa.Column(
        "seq",
        sa.BigInteger().with_variant(sa.Integer, "sqlite"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("dataset", sa.Text),
    sa.Column("reservation", sa.Text),
    sa.Column("claim", sa.Text, unique=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("prev_hash", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("author", sa.Text),
    sa.Column("signature", sa.Text),
    sa.Index("umbra_ledger_by_kind", "kind", "dataset", "seq"),
    sa.Index("umbra_ledger_by_dataset", "dataset", "seq"),
    sa.Index("umbra_ledger_by_reservation", "reservation", "seq"),
)

COLUMNS = tuple(column.name for column in LEDGER.columns)

# The columns that a table of schema 1 lacks; they are the last ones and may be null.
ADDED = ("author", "signature")

_REFUSAL = "the privacy ledger is append-only"

# The insert trigger matters as much as the other two: INSERT OR REPLACE deletes the row that it
# collides with, and SQLite does not fire delete triggers for that.
_SQLITE_TRIGGERS = {
    name: f"CREATE TRIGGER {name} BEFORE {condition}BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    for name, condition in {
        "umbra_ledger_no_update": "UPDATE ON umbra_ledger ",
        "umbra_ledger_no_delete": "DELETE ON umbra_ledger ",
        "umbra_ledger_only_append": (
            "INSERT ON umbra_ledger "
            "WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM umbra_ledger) "
            "OR EXISTS (SELECT 1 FROM umbra_ledger WHERE claim = NEW.claim) "
        ),
    }.items()
}

_POSTGRES_FUNCTION = f"""
CREATE OR REPLACE FUNCTION umbra_ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '{_REFUSAL}';
END $$
"""
_POSTGRES_TRIGGERS = {
    name: f"CREATE TRIGGER {name} BEFORE {moment} EXECUTE FUNCTION umbra_ledger_refuse()"
    for name, moment in {
        "umbra_ledger_no_change": "UPDATE OR DELETE ON umbra_ledger FOR EACH ROW",
        "umbra_ledger_no_truncate": "TRUNCATE ON umbra_ledger FOR EACH STATEMENT",
    }.items()
}


def has_table(connection: sa.Connection) -> bool:
    """Return whether the table is there."""
    return sa.inspect(connection).has_table(LEDGER.name)


def create_table(connection: sa.Connection) -> None:
    """Create the table and its triggers inside the connection's transaction."""
    metadata.create_all(connection)
    on_postgres = [_POSTGRES_FUNCTION, *_POSTGRES_TRIGGERS.values()]
    sqlite = connection.dialect.name == "sqlite"
    for statement in _SQLITE_TRIGGERS.values() if sqlite else on_postgres:
        connection.exec_driver_sql(statement)


def add_columns(connection: sa.Connection) -> None:
    """Give a table of schema 1 the columns that it lacks, inside the connection's transaction."""
    found = _columns(connection)
    for name in ADDED:
        # Rows of schema 1 may lie in a table of schema 2 already, if they were moved there.
        if name not in found:
            connection.exec_driver_sql(f"ALTER TABLE {LEDGER.name} ADD COLUMN {name} TEXT")


def structural_problems(connection: sa.Connection) -> list[str]:
    """Return what is wrong with the table around its rows: missing triggers, damaged indexes."""
    # A damaged index could hide a reservation from the query that adds up what is spent, although
    # every row still bears its right hash.
    problems = []
    columns = _columns(connection)
    if columns not in (COLUMNS, COLUMNS[: -len(ADDED)]):
        problems.append(f"the table has the columns {', '.join(columns)}, which no schema has")
    if connection.dialect.name == "sqlite":
        return problems + _sqlite_problems(connection)
    query = sa.text(
        "SELECT tgname FROM pg_trigger WHERE tgrelid = CAST(:name AS regclass) "
        "AND tgenabled IN ('O', 'A')"
    )
    found = set(connection.scalars(query, {"name": LEDGER.name}))
    return problems + [_no_trigger(name) for name in _POSTGRES_TRIGGERS if name not in found]


def _columns(connection: sa.Connection) -> tuple[str, ...]:
    return tuple(column["name"] for column in sa.inspect(connection).get_columns(LEDGER.name))


def _sqlite_problems(connection: sa.Connection) -> list[str]:
    rows = connection.execute(
        sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :name"),
        {"name": LEDGER.name},
    )
    found: dict[str, str] = dict(tuple(row) for row in rows)
    problems = [
        _no_trigger(name) for name, sql in _SQLITE_TRIGGERS.items() if found.get(name) != sql
    ]
    problems += [
        f"a trigger that is not ours was added: {name}" for name in found.keys() - _SQLITE_TRIGGERS
    ]
    check = connection.exec_driver_sql("PRAGMA integrity_check(10)").scalars()
    return problems + [f"the SQLite file is damaged: {line}" for line in check if line != "ok"]


def _no_trigger(name: str) -> str:
    return f"the trigger {name}, which keeps the table append-only, is missing, off or changed"
