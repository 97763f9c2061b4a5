"""Somebody with a SQL prompt edits the file: every edit shows."""

import shutil
import sqlite3
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.budget import Budget, Component
from privacy.errors import IntegrityBroken
from privacy.ledger import Head, Ledger, Row
from privacy.ledger.chain import replay, row_hash
from privacy.mechanism import Gaussian

COLUMNS = (
    "seq", "kind", "created_at", "dataset", "reservation", "claim", "body", "prev_hash", "hash",
)  # fmt: skip


@pytest.fixture
def rows(filled):
    return list(filled.rows())


@pytest.fixture
def attack(filled, tmp_path):
    """Edit a copy with its triggers off, put them back, and return its path."""

    def run(*statements):
        copy = tmp_path / "copy.db"
        copy.unlink(missing_ok=True)
        source = sqlite3.connect(tmp_path / "ledger.db")
        target = sqlite3.connect(copy)
        source.backup(target)
        triggers = target.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            target.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            target.execute(*((statement,) if isinstance(statement, str) else statement))
        for _, sql in triggers:
            target.execute(sql)
        target.commit()
        target.close()
        source.close()
        return Ledger.open(copy)

    return run


def test_a_sound_ledger_verifies(filled):
    assert filled.verify([filled.head(), Head(1, next(filled.rows()).hash)]) == []


def test_the_attack_itself_leaves_no_trace(attack):
    assert attack().verify() == []


def test_every_single_character_of_every_column_counts(rows):
    for row in rows:
        for column in COLUMNS[1:]:
            text = getattr(row, column)
            if text is None:
                changes = ["", "x"]
            else:
                changes = [
                    text[:i] + chr(ord(text[i]) ^ 1) + text[i + 1 :] for i in range(len(text))
                ]
            for change in changes:
                altered = [*rows]
                altered[row.seq - 1] = replace(row, **{column: change})
                window = altered[max(0, row.seq - 2) : row.seq + 1]
                assert any(
                    finding.problem.startswith(("its content", "it cannot", "it does not follow"))
                    for finding in replay(window)
                    if finding.seq in (row.seq, row.seq + 1)
                    and not (finding.seq == window[0].seq and "follow" in finding.problem)
                ), (row.seq, column, change)


@pytest.mark.parametrize("column", COLUMNS[1:])
def test_edits_in_the_file_are_found(attack, column):
    value = "0" * 64 if "hash" in column else '{"epsilon":999.0}'
    for seq in (2, 25, 50):
        ledger = attack((f"UPDATE umbra_ledger SET {column} = ? WHERE seq = ?", (value, seq)))
        assert any(f.seq in (seq, seq + 1) for f in ledger.verify()), (column, seq)


def test_other_types_and_broken_text_are_found(attack):
    blob = attack("UPDATE umbra_ledger SET body = CAST(body AS BLOB) WHERE seq = 7")
    assert any("text" in f.problem for f in blob.verify())
    broken = attack("UPDATE umbra_ledger SET body = CAST(x'ff41' AS TEXT) WHERE seq = 7")
    assert any("damaged" in f.problem or f.seq == 7 for f in broken.verify())


@pytest.mark.parametrize("seq", [1, 2, 3, 25, 49])
def test_a_dropped_row_is_found(attack, seq):
    if seq == 1:
        with pytest.raises(IntegrityBroken, match="first row"):
            attack("DELETE FROM umbra_ledger WHERE seq = 1")
        return
    dropped = attack(f"DELETE FROM umbra_ledger WHERE seq = {seq}")
    assert any(f.seq == seq + 1 for f in dropped.verify())
    renumbered = attack(
        f"DELETE FROM umbra_ledger WHERE seq = {seq}",
        f"UPDATE umbra_ledger SET seq = seq - 1 WHERE seq > {seq}",
    )
    assert any(f.seq == seq for f in renumbered.verify())


def test_swapped_rows_are_found(attack):
    ledger = attack(
        "UPDATE umbra_ledger SET seq = 1000 WHERE seq = 10",
        "UPDATE umbra_ledger SET seq = 10 WHERE seq = 11",
        "UPDATE umbra_ledger SET seq = 11 WHERE seq = 1000",
    )
    assert {10, 11} <= {f.seq for f in ledger.verify()}


def test_a_repeated_row_is_found(attack):
    ledger = attack(
        "INSERT INTO umbra_ledger SELECT 51, kind, created_at, dataset, reservation, NULL, body, "
        "prev_hash, hash FROM umbra_ledger WHERE seq = 50"
    )
    assert any(f.seq == 51 for f in ledger.verify())


def test_truncation_shows_against_a_recorded_head_only(attack, filled):
    head = filled.head()
    for kept in (49, 3):
        ledger = attack(f"DELETE FROM umbra_ledger WHERE seq > {kept}")
        assert ledger.verify() == []
        assert any("cut off" in f.problem for f in ledger.verify([head]))


def test_an_edit_with_a_new_hash_breaks_the_next_row(attack, rows):
    lie = replace(rows[9], body=rows[9].body.replace('"steps":2', '"steps":1'))
    lie = replace(lie, hash=row_hash(lie))
    change = "UPDATE umbra_ledger SET body = ?, hash = ? WHERE seq = 10"
    findings = attack((change, (lie.body, lie.hash))).verify()
    assert [f.seq for f in findings] == [11]
    assert "does not follow" in findings[0].problem


def test_a_history_written_anew_shows_against_a_recorded_head(attack, filled, rows):
    forged, previous = [], rows[0].hash
    for row in rows[1:]:
        body = row.body.replace('"epsilon":10.0', '"epsilon":99.0')
        lie = replace(row, body=body, prev_hash=previous)
        forged.append(replace(lie, hash=row_hash(lie)))
        previous = forged[-1].hash
    ledger = attack(
        *(
            (
                "UPDATE umbra_ledger SET body = ?, prev_hash = ?, hash = ? WHERE seq = ?",
                (row.body, row.prev_hash, row.hash, row.seq),
            )
            for row in forged
        )
    )
    assert ledger.verify() == []
    assert any("history changed" in f.problem for f in ledger.verify([filled.head()]))


def test_a_missing_or_foreign_trigger_is_found(filled, tmp_path):
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("DROP TRIGGER umbra_ledger_no_update")
    assert any("umbra_ledger_no_update" in f.problem for f in filled.verify())


def test_a_damaged_index_is_found(filled, tmp_path):
    """Rows keep their hashes, but a query by index would no longer see the reservation."""
    copy = tmp_path / "copy.db"
    filled.close()
    shutil.copy(tmp_path / "ledger.db", copy)
    with sqlite3.connect(copy) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root, size = (
            connection.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = 'umbra_ledger_by_dataset'"
            ).fetchone()[0],
            connection.execute("PRAGMA page_size").fetchone()[0],
        )
    raw = bytearray(copy.read_bytes())
    at = raw.index(b"digits", (root - 1) * size)
    raw[at] ^= 1
    copy.write_bytes(raw)
    assert any("damaged" in f.problem for f in Ledger.open(copy).verify())


def test_a_file_of_garbage_is_damage_not_a_traceback(tmp_path):
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database at all" * 500)
    with pytest.raises(IntegrityBroken, match="damaged"):
        Ledger.open(path)


def test_nothing_is_granted_on_a_broken_ledger(attack, key, tmp_path):
    attack("UPDATE umbra_ledger SET body = '{}' WHERE seq = 20").close()
    ledger = Ledger.open(tmp_path / "copy.db", key)
    with pytest.raises(IntegrityBroken, match="row 20"):
        Budget(ledger).reserve(
            "run-2", "digits", "print-1", 1500, "one image", records_per_unit=1,
            plan=[Component("train", Gaussian(90.0))], void=False, idempotency_key="r2",
        )  # fmt: skip
    assert ledger.head().seq == 50


def test_the_budget_refuses_to_read_an_altered_row(attack, key, tmp_path):
    attack('UPDATE umbra_ledger SET body = \'{"epsilon":99.0,"delta":1e-05}\' WHERE seq = 2')
    with pytest.raises(IntegrityBroken, match="Row 2"):
        Budget(Ledger.open(tmp_path / "copy.db", key)).odometer("digits")


text = st.text(max_size=6)
maybe = st.none() | text
any_row = st.builds(
    Row, st.integers(1, 9), text, text, maybe, maybe, maybe, text, text, st.just("")
)


@given(any_row, any_row)
def test_no_two_rows_share_an_encoding(one, other):
    assert (row_hash(one) == row_hash(other)) == (one == other)
