"""The one table, and the triggers that let it only grow."""

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    inspect,
    text,
)

metadata = MetaData()

LEDGER = Table(
    "umbra_ledger",
    metadata,
    Column(
        "seq",
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("kind", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("dataset", Text),
    Column("reservation", Text),
    Column("claim", Text, unique=True),
    Column("body", Text, nullable=False),
    Column("prev_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("author", Text),
    Column("signature", Text),
    Index("umbra_ledger_by_kind", "kind", "dataset", "seq"),
    Index("umbra_ledger_by_dataset", "dataset", "seq"),
    Index("umbra_ledger_by_reservation", "reservation", "seq"),
)

COLUMNS = tuple(column.name for column in LEDGER.columns)

ADDED = ("author", "signature")
"""The columns that a table of schema 1 lacks; they are the last ones and may be null."""

_REFUSAL = "the privacy ledger is append-only"

# The insert trigger matters as much as the other two: INSERT OR REPLACE deletes the row that it
# collides with, and SQLite does not fire delete triggers for that.
_SQLITE_TRIGGERS = {
    "umbra_ledger_no_update": (
        "CREATE TRIGGER umbra_ledger_no_update BEFORE UPDATE ON umbra_ledger "
        f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    ),
    "umbra_ledger_no_delete": (
        "CREATE TRIGGER umbra_ledger_no_delete BEFORE DELETE ON umbra_ledger "
        f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    ),
    "umbra_ledger_only_append": (
        "CREATE TRIGGER umbra_ledger_only_append BEFORE INSERT ON umbra_ledger "
        "WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM umbra_ledger) "
        "OR EXISTS (SELECT 1 FROM umbra_ledger WHERE claim = NEW.claim) "
        "BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END"
    ),
}

_POSTGRES_FUNCTION = f"""
CREATE OR REPLACE FUNCTION umbra_ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '{_REFUSAL}';
END $$
"""
_POSTGRES_TRIGGERS = {
    "umbra_ledger_no_change": (
        "CREATE TRIGGER umbra_ledger_no_change BEFORE UPDATE OR DELETE ON umbra_ledger "
        "FOR EACH ROW EXECUTE FUNCTION umbra_ledger_refuse()"
    ),
    "umbra_ledger_no_truncate": (
        "CREATE TRIGGER umbra_ledger_no_truncate BEFORE TRUNCATE ON umbra_ledger "
        "FOR EACH STATEMENT EXECUTE FUNCTION umbra_ledger_refuse()"
    ),
}


def exists(connection: Connection) -> bool:
    """Return whether the table is there."""
    return inspect(connection).has_table(LEDGER.name)


def create(connection: Connection) -> None:
    """Create the table and its triggers inside the connection's transaction."""
    metadata.create_all(connection)
    if connection.dialect.name == "sqlite":
        statements = list(_SQLITE_TRIGGERS.values())
    else:
        statements = [_POSTGRES_FUNCTION, *_POSTGRES_TRIGGERS.values()]
    for statement in statements:
        connection.exec_driver_sql(statement)


def add_columns(connection: Connection) -> None:
    """Give a table of schema 1 the columns that it lacks, inside the connection's transaction."""
    found = _columns(connection)
    for name in ADDED:
        # Rows of schema 1 may lie in a table of schema 2 already, if they were moved there.
        if name not in found:
            connection.exec_driver_sql(f"ALTER TABLE {LEDGER.name} ADD COLUMN {name} TEXT")


def structural_problems(connection: Connection) -> list[str]:
    """Return what is wrong with the table around its rows: missing triggers, damaged indexes.

    A damaged index could hide a reservation from the query that adds up what is spent, although
    every row still bears its right hash.
    """
    problems = []
    columns = _columns(connection)
    if columns not in (COLUMNS, COLUMNS[: -len(ADDED)]):
        problems.append(f"the table has the columns {', '.join(columns)}, which no schema has")
    return problems + _trigger_problems(connection)


def _columns(connection: Connection) -> tuple[str, ...]:
    return tuple(column["name"] for column in inspect(connection).get_columns(LEDGER.name))


def _trigger_problems(connection: Connection) -> list[str]:
    if connection.dialect.name == "sqlite":
        return _sqlite_problems(connection)
    found = set(
        connection.scalars(
            text(
                "SELECT tgname FROM pg_trigger WHERE tgrelid = CAST(:name AS regclass) "
                "AND tgenabled IN ('O', 'A')"
            ),
            {"name": LEDGER.name},
        )
    )
    return [_no_trigger(name) for name in _POSTGRES_TRIGGERS if name not in found]


def _sqlite_problems(connection: Connection) -> list[str]:
    rows = connection.execute(
        text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :name"),
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
