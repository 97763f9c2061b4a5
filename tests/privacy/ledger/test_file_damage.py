"""Bytes of the SQLite file change: what is not found has changed nothing that is read."""

import random
import sqlite3
from contextlib import suppress

import pytest

from privacy.errors import UmbraError
from privacy.ledger import Kind, Ledger

FLIPS = 150
SLOW_FLIPS = 1500


@pytest.fixture
def damage(filled, tmp_path):
    """Flip bits of one byte in a copy of the file; returns whether that was found."""
    filled.close()
    raw = (tmp_path / "ledger.db").read_bytes()
    assert not (tmp_path / "ledger.db-wal").exists()  # all rows are in the one file
    copy = tmp_path / "copy.db"

    def everything(ledger):
        rows = list(ledger.rows())
        with ledger.reading() as view:
            by_index = [view.of(kind, name) for kind in Kind for name in (None, "faces", "digits")]
            by_index += [[view.by_claim(row.claim)] for row in rows if row.claim is not None]
            by_index += [[view.first_of(r)] for r in {row.reservation for row in rows} if r]
        return rows, by_index

    before = everything(Ledger.open(tmp_path / "ledger.db"))

    def run(at, flip):
        for end in ("", "-wal", "-shm"):
            (tmp_path / f"copy.db{end}").unlink(missing_ok=True)
        copy.write_bytes(raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :])
        ledger = None
        try:
            ledger = Ledger.open(copy)
            if ledger.verify():
                return True
            after = everything(ledger)
        except UmbraError:
            return True
        finally:
            if ledger is not None:
                ledger.close()
        assert after == before, f"byte {at} ^ {flip} changed what is read and was not found"
        return False

    run.size = len(raw)
    return run


def flips(size, n, seed):
    chance = random.Random(seed)
    return [(at, chance.randrange(1, 256)) for at in chance.sample(range(size), n)]


def test_a_changed_byte_is_found_or_changes_nothing_that_is_read(damage):
    """One byte of the file, drawn anywhere, gets another value.

    Either opening or verifying reports it, or every row, and every look-up by an index, reads
    exactly as before: the file has bytes that mean nothing (free space, counters, page caches).
    Never is there a traceback, and never another answer.
    """
    found = [damage(at, flip) for at, flip in flips(damage.size, FLIPS, 1)]
    assert sum(found) > FLIPS / 2


@pytest.mark.slow
def test_every_byte_of_the_header_and_the_schema_is_found_or_changes_nothing(damage):
    """The first page holds SQLite's header and the text of tables, indexes and triggers."""
    chance = random.Random(2)
    for at in [*range(100), *chance.sample(range(100, 4096), 30)]:
        damage(at, 1 << chance.randrange(8))


@pytest.mark.slow
def test_many_changed_bytes_are_found_or_change_nothing(damage):
    """The same over a larger sample of the file."""
    for at, flip in flips(damage.size, min(SLOW_FLIPS, damage.size), 3):
        damage(at, flip)


def test_a_damaged_index_is_found(filled, tmp_path):
    """Rows keep their hashes, but a query by index would no longer see the reservation."""
    filled.close()
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    root, size = (
        connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'umbra_ledger_by_dataset'"
        ).fetchone()[0],
        connection.execute("PRAGMA page_size").fetchone()[0],
    )
    connection.close()
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"digits", (root - 1) * size)] ^= 1
    path.write_bytes(raw)
    assert any("damaged" in f.problem for f in Ledger.open(path).verify())


@pytest.mark.parametrize("kept", [0, 1, 100, 4096, 20_000, -1])
def test_a_file_that_was_cut_off_is_found(filled, tmp_path, kept):
    filled.close()
    path = tmp_path / "ledger.db"
    path.write_bytes(path.read_bytes()[:kept])
    with suppress(UmbraError):
        assert Ledger.open(path).verify() != []


def test_a_file_of_garbage_is_damage_not_a_traceback(tmp_path):
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database at all" * 500)
    with pytest.raises(UmbraError, match="damaged"):
        Ledger.open(path)


def test_names_that_are_no_text_are_damage_not_a_traceback(filled, tmp_path):
    """SQLite quotes them when it complains, and the driver cannot decode the complaint."""
    filled.close()
    raw = (tmp_path / "ledger.db").read_bytes()
    copy = tmp_path / "copy.db"
    for name in (b"umbra_ledger_by_kind", b"umbra_ledger_no_update"):
        copy.write_bytes(raw.replace(name, b"\xd2" + name[1:], 1))
        with pytest.raises(UmbraError, match="damaged"):
            Ledger.open(copy)
