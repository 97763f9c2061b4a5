"""A ledger that schema 1 wrote is read as it is, and goes on under schema 3."""

import hashlib
import itertools
import json
import os
import signal
import sqlite3

import pytest
from sqlalchemy import Engine, event, inspect

from privacy.budget import Budget, Component
from privacy.errors import InvalidRequest, LedgerUnavailable
from privacy.ledger import Head, Kind, Ledger, database
from privacy.mechanisms import Gaussian

OLD_HEAD = Head(11, "a240ae4f9e685f040ed3155e2afdf708a10ab68e60cddaa04cd49b86dd12bcf6")


def naive_hash(row):
    """The hash of schema 1, written down once more."""
    columns = (row.seq, row.kind, row.created_at, row.dataset, row.reservation, row.claim)
    values = ["umbra ledger row", 1, *columns, row.body, row.prev_hash]
    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


def schema_of(url):
    """The schema that the newest row of those that name one names."""
    return [r.content["schema"] for r in Ledger.open(url).rows() if "schema" in r.content][-1]


def test_without_the_key_it_is_read_and_verified_as_it_is(any_old):
    reader = Ledger.open(any_old)
    rows = list(reader.rows())
    assert [row.hash for row in rows] == [naive_hash(row) for row in rows]
    assert {(row.author, row.signature) for row in rows} == {(None, None)}
    assert reader.head() == OLD_HEAD
    assert reader.verify([OLD_HEAD]) == []
    assert reader.public_key is None
    assert Budget(reader).odometer("digits").open_reservations == 1
    assert schema_of(any_old) == 1


def test_with_the_key_it_is_migrated_and_keeps_every_row(any_old, key, ask):
    before = list(Ledger.open(any_old).rows())
    ledger = Ledger.open(any_old, key, author="officer@desk")
    *rows, second, last = ledger.rows()
    assert rows == before
    assert (second.kind, second.content) == ("migrate", {"schema": 2})
    assert (last.kind, last.content, last.author) == ("migrate", {"schema": 3}, "officer@desk")
    assert ledger.verify([OLD_HEAD, last.head]) == []
    budget = Budget(ledger)
    budget.declare("faces", 5.0, 1e-5)
    ask(budget, "new", [Component("train", Gaussian(30.0, 2))], dataset="faces")
    assert {row.author for row in ledger.rows() if row.seq > 11} == {"officer@desk"}
    assert ledger.verify([OLD_HEAD]) == []
    assert Ledger.open(any_old, key).head() == ledger.head()  # nothing is migrated twice


@pytest.mark.parametrize("column", ["author", "signature"])
def test_the_triggers_hold_the_new_columns_too(any_old, key, column):
    ledger = Ledger.open(any_old, key)
    with (
        ledger._database.engine.connect() as connection,
        pytest.raises(Exception, match="append-only"),
    ):
        connection.exec_driver_sql(f"UPDATE umbra_ledger SET {column} = 'x' WHERE seq = 2")
    assert ledger.verify() == []


def test_a_reader_that_was_there_before_reads_on(any_old, key):
    reader = Ledger.open(any_old)
    for _ in range(8):  # as often as a driver needs to prepare a statement
        assert reader.head() == OLD_HEAD
    writer = Ledger.open(any_old, key, author="officer@desk")
    assert reader.head() == writer.head()
    assert list(reader.rows()) == list(writer.rows())
    assert reader.verify() == []


def test_of_processes_that_migrate_at_once_one_does(any_old, key, in_processes):
    def work(i):
        own = Ledger.open(any_old, key, author=f"process {i}")
        with own.transaction() as t:
            t.append(Kind.DECLARE, {"i": i})
        return 0

    assert in_processes(8, work) == [0] * 8
    kinds = [row.kind for row in Ledger.open(any_old).rows()]
    assert kinds[11:] == ["migrate"] * 2 + ["declare"] * 8
    assert Ledger.open(any_old).verify([OLD_HEAD]) == []


@pytest.mark.parametrize("after", ["author", "signature", "row"])
def test_an_error_in_the_middle_leaves_schema_1(any_old, key, monkeypatch, after):
    def stop(connection, transaction, real=database.add_columns):
        if after == "author":
            connection.exec_driver_sql("ALTER TABLE umbra_ledger ADD COLUMN author TEXT")
        else:
            real(connection)
        if after == "row":
            transaction.append(Kind.MIGRATE, {"schema": 2}, claim="migrate:2")
        raise ZeroDivisionError

    monkeypatch.setattr("privacy.ledger.store.migrate", stop)
    with pytest.raises(ZeroDivisionError):
        Ledger.open(any_old, key)
    assert Ledger.open(any_old).head() == OLD_HEAD
    assert Ledger.open(any_old).verify() == []
    assert schema_of(any_old) == 1
    monkeypatch.undo()
    assert Ledger.open(any_old, key).verify([OLD_HEAD]) == []
    assert schema_of(any_old) == 3


def test_a_process_killed_at_any_statement_leaves_schema_1_or_3(any_old, key, in_processes):
    def die_at(n):
        def work(_):
            counter = itertools.count(1)

            def step(*_):
                if next(counter) == n:
                    os.kill(os.getpid(), signal.SIGKILL)

            event.listen(Engine, "before_cursor_execute", step)
            event.listen(Engine, "commit", step)
            Ledger.open(any_old, key)
            return 0

        return work

    versions, n = [], 0
    while versions[-1:] != [3]:
        n += 1
        assert in_processes(1, die_at(n)) == [-signal.SIGKILL]
        reader = Ledger.open(any_old)
        with reader._database.engine.connect() as connection:
            columns = len(inspect(connection).get_columns("umbra_ledger"))
        versions.append(schema_of(any_old))
        assert (columns, reader.head().seq) == ((9, 11) if versions[-1] == 1 else (11, 13))
        assert reader.verify([OLD_HEAD]) == []
        reader.close()
    assert len(versions) > 10  # it was killed at every statement of the migration, one by one
    assert in_processes(1, die_at(10_000)) == [0]
    assert Ledger.open(any_old, key).verify([OLD_HEAD]) == []


def test_rows_moved_into_a_newer_table_are_migrated_by_the_row_alone(old_sqlite, key, tmp_path):
    new = Ledger.open(tmp_path / "new.db", key)
    new.close()
    connection = sqlite3.connect(tmp_path / "new.db")
    connection.execute("DROP TRIGGER umbra_ledger_no_delete")
    connection.execute("DELETE FROM umbra_ledger")
    connection.execute("ATTACH ? AS old", (str(old_sqlite),))
    connection.execute("INSERT INTO umbra_ledger SELECT *, NULL, NULL FROM old.umbra_ledger")
    connection.commit()
    connection.execute(
        "CREATE TRIGGER umbra_ledger_no_delete BEFORE DELETE ON umbra_ledger "
        "BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END"
    )
    connection.close()
    assert Ledger.open(tmp_path / "new.db", key).head().seq == 13
    assert Ledger.open(tmp_path / "new.db").verify([OLD_HEAD]) == []


def test_new_ledgers_follow_schema_3_at_once(any_ledger):
    assert [row.kind for row in any_ledger.rows()] == ["genesis"]
    assert next(any_ledger.rows()).content["schema"] == 3


@pytest.mark.parametrize("version", [4, "2", None, 0, True])
def test_a_ledger_of_an_unknown_schema_is_refused_by_everybody(any_ledger, again, version):
    open_already = again(any_ledger)
    with any_ledger.transaction() as t:
        t.append(Kind.MIGRATE, {"schema": version})
    for options in ({}, {"author": "officer@desk"}):
        with pytest.raises(LedgerUnavailable, match="schema version"):
            again(any_ledger, **options)
    with (
        pytest.raises(LedgerUnavailable, match="schema version"),
        open_already.transaction() as t,
    ):
        t.append(Kind.DECLARE, {})
    with any_ledger.reading() as view:
        assert view.last_row().kind == "migrate"


@pytest.mark.parametrize(
    "author", ["", " ", "two\nlines", "bell\a", "x" * 129, "\ud800", b"bytes", 7]
)
def test_an_author_is_one_line_of_printable_text(tmp_path, key, author):
    with pytest.raises(InvalidRequest, match="author"):
        Ledger.open(tmp_path / "ledger.db", key, author=author)
    assert list(tmp_path.iterdir()) == []


def test_an_author_is_written_as_given(any_ledger, again):
    author = "Zoë Ω. 李 'x'; --" + "y" * 100
    ledger = again(any_ledger, author=author)
    with ledger.transaction() as t:
        row = t.append(Kind.DECLARE, {})
    assert row.author == author
    assert list(any_ledger.rows())[-1] == row
    assert any_ledger.verify() == []
