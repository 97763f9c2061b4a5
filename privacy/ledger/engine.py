"""Connections to SQLite and PostgreSQL that are durable, serialised and fail in clear words."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from privacy.errors import IntegrityBroken, InvalidRequest, LedgerUnavailable

WAIT_S = 60
"""How long a transaction waits for the ones before it."""

WRITES = "umbra_writes"
"""Execution option of a connection whose transactions append."""

_APPEND_LOCK = 0x756D627261  # "umbra": the advisory lock that serialises appends on PostgreSQL

_DAMAGED = ("malformed", "not a database", "could not decode")


def normalise(url: str | Path) -> URL:
    """Return the SQLAlchemy URL of a path or a URL.

    Raises:
        InvalidRequest: unless it is a SQLite file or a PostgreSQL URL.
    """
    if isinstance(url, Path) or "://" not in url:
        return URL.create("sqlite", database=str(Path(url).expanduser().absolute()))
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidRequest(f"The ledger's URL cannot be read: {_expected()}") from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and parsed.database not in (None, "", ":memory:") and not parsed.query:
        return URL.create("sqlite", database=str(Path(str(parsed.database)).absolute()))
    raise InvalidRequest(
        f"The ledger cannot be kept in {parsed.render_as_string(hide_password=True)!r}: "
        + _expected()
    )


def _expected() -> str:
    return "expected the path of a SQLite file or postgresql://USER@HOST/DATABASE."


def connect(url: URL) -> Engine:
    """Return an engine whose commits are on disk when they return.

    Raises:
        LedgerUnavailable: where the PostgreSQL driver is not installed.
    """
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": WAIT_S}, hide_parameters=True)
        event.listen(engine, "connect", _prepare_sqlite)
    else:
        # READ COMMITTED, so that what is read after the lock is what the last holder wrote.
        options = f"-c synchronous_commit=on -c lock_timeout={WAIT_S * 1000}"
        try:
            engine = create_engine(
                url,
                isolation_level="READ COMMITTED",
                pool_pre_ping=True,
                hide_parameters=True,
                # No prepared statements: they would outlive the table's columns in a migration.
                connect_args={
                    "connect_timeout": 10,
                    "options": options,
                    "prepare_threshold": None,
                },
            )
        except ModuleNotFoundError as error:
            raise LedgerUnavailable(
                "A ledger on PostgreSQL needs its driver: pip install 'umbra-synth[postgres]'."
            ) from error
    event.listen(engine, "begin", _begin)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver would begin transactions by itself, and later than we need; `_begin` does it.
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous=FULL")
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        _enable_wal(connection)


def _enable_wal(connection: sqlite3.Connection) -> None:
    # SQLite does not wait for other processes here as it does elsewhere, so we do.
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
    elif writes:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_APPEND_LOCK})")


class Database:
    """The connections of one process to one ledger's database.

    Attributes:
        engine: SQLAlchemy's.
        path: the file, None on PostgreSQL.
        where: path or URL for messages, without a password.
    """

    def __init__(self, url: URL) -> None:
        self.engine = connect(url)
        self.path = Path(str(url.database)) if url.get_backend_name() == "sqlite" else None
        self.where = str(self.path or url.render_as_string(hide_password=True))
        self._pid = os.getpid()
        self._file: tuple[int, int] | None = None

    def hold_file(self) -> None:
        """Refuse from now on to work on another file than the one at `path`."""
        self._file = _identity(self.path)

    @contextmanager
    def begin(self, writes: bool) -> Iterator[Connection]:
        """Give a connection inside a transaction, committed where nothing is raised inside.

        Raises:
            IntegrityBroken, LedgerUnavailable: as `clear_errors` does, and where the file was
                deleted or replaced.
        """
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
    """Turn the database's exceptions into ours.

    Raises:
        IntegrityBroken: where the database says that its file is damaged.
        LedgerUnavailable: on everything else the database, its driver or the disk refuses.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        # The driver's own complaint could not be decoded: it quotes names out of the file.
        raise IntegrityBroken(
            f"The ledger at {where} is damaged: it holds text that is none. Restore it from a "
            "copy, then run `umbra audit`."
        ) from error
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        if any(word in lines[0].lower() for word in _DAMAGED):
            raise IntegrityBroken(
                f"The ledger at {where} is damaged: {lines[0]}. Restore it from a copy, then "
                "run `umbra audit`."
            ) from error
        raise LedgerUnavailable(
            f"The ledger at {where} cannot be used: {lines[0]}. Without it nothing private may "
            "run. Make it reachable and writable, with room on its disk, then repeat the command."
        ) from error
