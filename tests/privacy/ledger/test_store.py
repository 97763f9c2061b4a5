import sqlite3
import threading

import pytest

from privacy.errors import IntegrityBroken, InvalidRequest, LedgerUnavailable
from privacy.ledger import Head, Kind, Ledger
from privacy.ledger.chain import row_hash


def append(ledger, n=1, **body):
    with ledger.transaction() as t:
        for _ in range(n):
            row = t.append(Kind.DECLARE, body)
    return row


def test_the_first_row_says_what_the_ledger_is(any_ledger):
    (genesis,) = any_ledger.rows()
    assert genesis.kind == "genesis"
    assert genesis.content == {
        "schema": 3, "ledger": any_ledger.ledger_id, "key": any_ledger.key_id
    }  # fmt: skip
    assert any_ledger.head() == Head(1, genesis.hash)


def test_rows_come_back_as_they_were_written(any_ledger):
    with any_ledger.transaction() as t:
        row = t.append(Kind.DECLARE, {"é": [1.5, None, True], "a": "\0\n'\""}, "d", "r", "c")
    assert list(any_ledger.rows())[-1] == row
    assert row.hash == row_hash(row)
    assert any_ledger.verify([row.head]) == []


def test_rows_can_be_chosen_and_paged(any_ledger, monkeypatch):
    monkeypatch.setattr("privacy.ledger.store._PAGE", 3)
    with any_ledger.transaction() as t:
        for i in range(10):
            t.append(Kind.DECLARE if i % 2 else Kind.CHARGE, {"i": i}, "ab"[i // 5], f"r{i % 3}")
    assert [r.seq for r in any_ledger.rows()] == list(range(1, 12))
    assert [r.content["i"] for r in any_ledger.rows(dataset="a")] == [0, 1, 2, 3, 4]
    assert [r.content["i"] for r in any_ledger.rows(kind=Kind.CHARGE)] == [0, 2, 4, 6, 8]
    assert [r.content["i"] for r in any_ledger.rows(reservation="r1", dataset="b")] == [7]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE umbra_ledger SET body = '{}' WHERE seq = 1",
        "DELETE FROM umbra_ledger WHERE seq = 1",
        "DELETE FROM umbra_ledger",
    ],
)
def test_the_database_refuses_update_and_delete(any_ledger, statement):
    with (
        any_ledger._database.engine.connect() as connection,
        pytest.raises(Exception, match="append-only"),
    ):
        connection.exec_driver_sql(statement)
    assert any_ledger.verify() == []


@pytest.mark.parametrize("seq", [1, 3, 7])
def test_sqlite_refuses_replace_and_gaps(ledger, tmp_path, seq):
    append(ledger)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(
            "INSERT OR REPLACE INTO umbra_ledger SELECT ?, kind, created_at, dataset, "
            "reservation, claim, body, prev_hash, hash, author, signature FROM umbra_ledger "
            "WHERE seq = 1",
            (seq,),
        )
    connection.close()
    assert ledger.verify() == []


def test_postgres_refuses_truncate_and_reports_missing_triggers(postgres):
    with (
        postgres._database.engine.connect() as connection,
        pytest.raises(Exception, match="append-only"),
    ):
        connection.exec_driver_sql("TRUNCATE umbra_ledger")
    with postgres._database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE umbra_ledger DISABLE TRIGGER USER")
    assert len(postgres.verify()) == 2


def test_an_error_inside_leaves_nothing(any_ledger):
    with pytest.raises(ZeroDivisionError), any_ledger.transaction() as t:
        t.append(Kind.DECLARE, {"a": 1})
        raise ZeroDivisionError
    assert any_ledger.head().seq == 1
    append(any_ledger)
    assert any_ledger.verify() == []


def test_no_claim_is_taken_twice(any_ledger):
    with any_ledger.transaction() as t:
        t.append(Kind.DECLARE, {}, claim="mine")
    with pytest.raises(LedgerUnavailable), any_ledger.transaction() as t:
        t.append(Kind.DECLARE, {}, claim="mine")
    assert any_ledger.head().seq == 2


def test_it_opens_again_with_its_key_only(ledger, tmp_path, key):
    path = tmp_path / "ledger.db"
    assert Ledger.open(path, key).ledger_id == ledger.ledger_id
    with pytest.raises(InvalidRequest, match="fresh budget"):
        Ledger.open(path, bytes(32))


def test_without_the_key_it_can_be_read_but_not_written(ledger, tmp_path):
    reader = Ledger.open(tmp_path / "ledger.db")
    assert reader.verify([ledger.head()]) == []
    with pytest.raises(InvalidRequest, match="reading only"):
        append(reader)


def test_reading_makes_no_ledger(tmp_path):
    with pytest.raises(LedgerUnavailable, match="umbra budget declare"):
        Ledger.open(tmp_path / "none" / "ledger.db")
    assert list(tmp_path.iterdir()) == []


def test_a_newer_schema_is_refused(tmp_path, key, monkeypatch):
    monkeypatch.setattr("privacy.ledger.store.SCHEMA_VERSION", 4)
    monkeypatch.setattr("privacy.ledger.store.SCHEMA_VERSION", 4)
    Ledger.open(tmp_path / "ledger.db", key)
    monkeypatch.undo()
    with pytest.raises(LedgerUnavailable, match="schema version 4"):
        Ledger.open(tmp_path / "ledger.db", key)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mysql://h/d", "sqlite:///a?mode=ro", "://", "x://y"]
)
def test_other_databases_are_refused(url, key):
    with pytest.raises(InvalidRequest, match="expected the path"):
        Ledger.open(url, key)


def test_a_password_is_not_told(key):
    with pytest.raises(LedgerUnavailable) as caught:
        Ledger.open("postgresql://me:swordfish@127.0.0.1:1/none", key)
    assert "swordfish" not in str(caught.value)


def test_a_folder_that_cannot_be_made(tmp_path, key):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerUnavailable, match="cannot be used"):
        Ledger.open(tmp_path / "file" / "ledger.db", key)


def test_a_rollback_under_a_running_process_is_seen(any_ledger):
    append(any_ledger, 3)
    with any_ledger._database.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("DROP TRIGGER umbra_ledger_no_delete")
        else:
            connection.exec_driver_sql("ALTER TABLE umbra_ledger DISABLE TRIGGER USER")
        connection.exec_driver_sql("DELETE FROM umbra_ledger WHERE seq > 2")
        connection.commit()
    with pytest.raises(IntegrityBroken, match="rolled back"):
        append(any_ledger)


def test_commits_are_synced(ledger):
    with ledger._database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_threads_share_one_ledger(any_ledger):
    threads = [
        threading.Thread(target=lambda: [append(any_ledger) for _ in range(10)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any_ledger.head().seq == 41
    assert any_ledger.verify() == []


def test_processes_create_and_append_at_once(tmp_path, key, in_processes):
    path = tmp_path / "new" / "ledger.db"

    def work(_):
        own = Ledger.open(path, key)
        for _ in range(5):
            append(own)
        return 0

    assert in_processes(8, work) == [0] * 8
    ledger = Ledger.open(path)
    assert ledger.head().seq == 41
    assert ledger.verify() == []


def test_a_forked_process_does_not_reuse_connections(any_ledger, in_processes):
    append(any_ledger)
    assert in_processes(4, lambda _: append(any_ledger) and 0) == [0] * 4
    append(any_ledger)
    assert any_ledger.head().seq == 7
    assert any_ledger.verify() == []


def test_a_head_is_read_as_it_is_written(ledger):
    head = ledger.head()
    assert Head.parse(str(head)) == head
    for text in ("", "1", "x:" + "0" * 64, "1:" + "G" * 64, "-1:" + "0" * 64):
        with pytest.raises(InvalidRequest, match="SEQ:HASH"):
            Head.parse(text)
