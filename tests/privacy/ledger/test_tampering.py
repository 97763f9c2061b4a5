"""Somebody with a SQL prompt edits the rows: every edit shows."""

import random
import sqlite3
from dataclasses import fields, replace
from functools import lru_cache
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.budget import Budget, Component
from privacy.errors import IntegrityBroken
from privacy.ledger import Head, Kind, Ledger, Row, chain
from privacy.ledger.chain import replay, row_hash
from privacy.mechanisms import Gaussian

COLUMNS = tuple(field.name for field in fields(Row))


@pytest.fixture
def rows(filled):
    return list(filled.rows())


@pytest.fixture
def found(monkeypatch):
    """Whether the real replay finds anything; rows that were judged before are not hashed anew."""
    monkeypatch.setattr(chain, "broken", lru_cache(maxsize=None)(chain.broken))
    monkeypatch.setattr(chain, "is_signed", lru_cache(maxsize=None)(chain.is_signed))
    return lambda rows, **options: next(replay(rows, **options), None) is not None


@pytest.fixture
def attack(filled, key, tmp_path):
    """Edit a copy with its triggers off, put them back, and open it."""

    def run(*statements, **options):
        copy = tmp_path / "copy.db"
        copy.unlink(missing_ok=True)
        source, target = sqlite3.connect(tmp_path / "ledger.db"), sqlite3.connect(copy)
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
        return Ledger.open(copy, **options)

    return run


def test_a_sound_ledger_of_all_kinds_verifies(filled, rows):
    assert {row.kind for row in rows} == {kind.value for kind in Kind}
    assert {row.author for row in rows} == {None, "officer@desk"}
    assert sum(row.signature is not None for row in rows) > 20
    assert filled.verify([filled.head(), rows[0].head]) == []


def test_the_attack_itself_leaves_no_trace(attack):
    assert attack().verify() == []


def changes(text):
    """Every byte changed in two of four ways in turn: lowest bit, drawn value, dropped, doubled."""
    raw, chance = text.encode(), random.Random(text)
    for i, byte in enumerate(raw):
        other = (byte + chance.randrange(1, 256)) % 256
        ways = (bytes([byte ^ 1]), bytes([other]), b"", raw[i : i + 1] * 2)
        for middle in (ways[i % 4], ways[(i + 2) % 4]):
            yield (raw[:i] + middle + raw[i + 1 :]).decode(errors="surrogateescape")


@pytest.mark.parametrize("column", COLUMNS)
def test_every_single_byte_of_every_row_counts(rows, found, column):
    assert not found(rows)
    tried = 0
    for i, row in enumerate(rows):
        value = getattr(row, column)
        if isinstance(value, int):
            others = [value ^ 1 << bit for bit in range(63)] + [-value, 0]
        else:
            others = [*changes(value), None] if value is not None else ["", "x", row.hash]
        for other in others:
            if other == value:
                continue  # of a doubled byte one was dropped
            lie = replace(row, **{column: other})
            assert found([*rows[:i], lie, *rows[i + 1 :]]), (row.seq, column, other)
            tried += 1
    assert tried >= 100


def renumbered(rows):
    return [replace(row, seq=seq) for seq, row in enumerate(rows, 1)]


def test_every_dropped_row_is_found(rows, found, filled):
    for i in range(len(rows)):
        left = rows[:i] + rows[i + 1 :]
        heads = [filled.head()]
        assert found(left, heads=heads), i
        assert found(renumbered(left), heads=heads), i
        if i < len(rows) - 1:  # the last one shows against a recorded head only
            assert found(left), i


def test_every_two_swapped_rows_are_found(rows, found):
    for i, j in combinations(range(len(rows)), 2):
        swapped = [*rows]
        swapped[i], swapped[j] = rows[j], rows[i]
        assert found(swapped), (i, j)
        assert found(renumbered(swapped)), (i, j)


def test_every_repeated_row_is_found(rows, found):
    for i, row in enumerate(rows):
        for at in {i + 1, len(rows), 0}:
            more = [*rows[:at], row, *rows[at:]]
            assert found(more), (i, at)
            assert found(renumbered(more)), (i, at)


def test_every_length_of_truncation_is_found_by_a_head_and_by_the_witness(
    attack, filled, key, tmp_path
):
    head, ledger = filled.head(), attack()
    before = ledger.head()
    assert before == head
    for kept in range(49, 0, -1):
        cut = attack(f"DELETE FROM umbra_ledger WHERE seq > {kept}")
        assert cut.verify() == []
        assert ["cut off" in f.problem for f in cut.verify([head])] == [True]
        seen = Ledger.open(tmp_path / "copy.db", witness=tmp_path / "witness")
        assert ["cut off" in f.problem for f in seen.verify()] == [True]
        with pytest.raises(IntegrityBroken, match="rolled back"):
            Ledger.open(tmp_path / "copy.db", key, witness=tmp_path / "witness")


@pytest.mark.parametrize("column", COLUMNS[1:])
def test_edits_in_the_file_are_found(attack, column):
    value = "0" * 64 if "hash" in column else '{"epsilon":999.0}'
    for seq in (2, 25, 61):
        ledger = attack((f"UPDATE umbra_ledger SET {column} = ? WHERE seq = ?", (value, seq)))
        assert any(f.seq in (seq, seq + 1) for f in ledger.verify()), (column, seq)


def test_every_null_in_the_file_counts(attack, rows):
    for row in rows[1::7]:  # without its first row it does not open
        for column in ("dataset", "reservation", "claim", "author", "signature"):
            value = "x" if getattr(row, column) is None else None
            edit = (f"UPDATE umbra_ledger SET {column} = ? WHERE seq = ?", (value, row.seq))
            assert any(f.seq == row.seq for f in attack(edit).verify()), (row.seq, column)


def test_other_types_and_broken_text_are_found(attack):
    for column in ("body", "author", "signature", "hash"):
        blob = attack(f"UPDATE umbra_ledger SET {column} = CAST({column} AS BLOB) WHERE seq = 37")
        assert any(f.seq == 37 and "text" in f.problem for f in blob.verify())
    broken = attack("UPDATE umbra_ledger SET body = CAST(x'ff41' AS TEXT) WHERE seq = 7")
    assert any("damaged" in f.problem or f.seq == 7 for f in broken.verify())


@pytest.mark.parametrize("seq", [1, 2, 3, 25, 49])
def test_a_row_dropped_from_the_file_is_found(attack, seq):
    if seq == 1:
        with pytest.raises(IntegrityBroken, match="first row"):
            attack("DELETE FROM umbra_ledger WHERE seq = 1")
        return
    dropped = attack(f"DELETE FROM umbra_ledger WHERE seq = {seq}")
    assert any(f.seq == seq + 1 for f in dropped.verify())
    closed_up = attack(
        f"DELETE FROM umbra_ledger WHERE seq = {seq}",
        f"UPDATE umbra_ledger SET seq = seq - 1 WHERE seq > {seq}",
    )
    assert any(f.seq == seq for f in closed_up.verify())


def test_rows_swapped_and_repeated_in_the_file_are_found(attack):
    swapped = attack(
        "UPDATE umbra_ledger SET seq = 1000 WHERE seq = 10",
        "UPDATE umbra_ledger SET seq = 10 WHERE seq = 11",
        "UPDATE umbra_ledger SET seq = 11 WHERE seq = 1000",
    )
    assert {10, 11} <= {f.seq for f in swapped.verify()}
    repeated = attack(
        "INSERT INTO umbra_ledger SELECT 62, kind, created_at, dataset, reservation, NULL, body, "
        "prev_hash, hash, author, signature FROM umbra_ledger WHERE seq = 61"
    )
    assert any(f.seq == 62 for f in repeated.verify())


def test_an_edit_with_a_new_hash_breaks_the_next_row(attack, rows):
    lie = replace(rows[9], body=rows[9].body.replace('"steps":', '"steps":1'))
    lie = replace(lie, hash=row_hash(lie))
    change = "UPDATE umbra_ledger SET body = ?, hash = ? WHERE seq = 10"
    findings = attack((change, (lie.body, lie.hash))).verify()
    assert [f.seq for f in findings] == [11]
    assert "does not follow" in findings[0].problem


def test_a_history_written_anew_shows_against_a_recorded_head(ledger, found):
    """Where nothing is signed; see test_signatures.py for what a key adds."""
    with ledger.transaction() as t:
        for i in range(5):
            t.append(Kind.DECLARE, {"epsilon": 10.0 + i})
    rows = list(ledger.rows())
    forged = rows[:1]
    for row in rows[1:]:
        body = row.body.replace("10.0", "99.0")
        lie = replace(row, body=body, prev_hash=forged[-1].hash)
        forged.append(replace(lie, hash=row_hash(lie)))
    assert not found(forged)
    for head in (row.head for row in rows[1:]):
        (finding,) = replay(forged, [head])
        assert "history changed" in finding.problem


def test_a_missing_or_foreign_trigger_is_found(filled, tmp_path):
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("DROP TRIGGER umbra_ledger_no_update")
        connection.execute("CREATE TRIGGER x BEFORE INSERT ON umbra_ledger BEGIN SELECT 1; END")
    problems = " ".join(f.problem for f in filled.verify())
    assert "umbra_ledger_no_update" in problems
    assert "not ours was added: x" in problems


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE umbra_ledger ADD COLUMN more TEXT",
        "ALTER TABLE umbra_ledger DROP COLUMN signature",
        "ALTER TABLE umbra_ledger RENAME COLUMN author TO writer",
    ],
)
def test_other_columns_are_found(attack, change):
    assert any("columns" in f.problem for f in attack(change).verify())


def test_nothing_is_granted_on_a_broken_ledger(attack, ask, key, signing_keys):
    ledger = attack(
        "UPDATE umbra_ledger SET body = '{}' WHERE seq = 20",
        key=key,
        signing_key=signing_keys[1],
    )
    with pytest.raises(IntegrityBroken, match="row 20"):
        ask(Budget(ledger), "r2", [Component("train", Gaussian(90.0))], dataset="faces-2")
    assert ledger.head().seq == 61


def test_the_budget_refuses_to_read_an_altered_row(attack):
    lie = '{"delta":1e-05,"epsilon":99.0}'
    ledger = attack(("UPDATE umbra_ledger SET body = ? WHERE claim = 'declare:faces'", (lie,)))
    with pytest.raises(IntegrityBroken, match="not as it was written"):
        Budget(ledger).odometer("faces")


text = st.text(max_size=6)
maybe = st.none() | text
any_row = st.builds(
    Row, st.integers(1, 9), text, text, maybe, maybe, maybe, text, text, st.just(""), maybe
)


@given(any_row, any_row)
def test_no_two_rows_share_an_encoding(one, other):
    assert (row_hash(one) == row_hash(other)) == (one == other)


@given(any_row, st.sampled_from((*COLUMNS[:8], "author")), st.integers(1, 9) | maybe)
def test_a_row_that_differs_in_one_column_has_another_hash(row, column, value):
    try:
        other = row_hash(replace(row, **{column: value}))
    except TypeError:
        return
    assert (other == row_hash(row)) == (value == getattr(row, column))


def test_a_head_is_the_row_that_it_names(rows):
    assert [row.head for row in rows[:2]] == [Head(1, rows[0].hash), Head(2, rows[1].hash)]
