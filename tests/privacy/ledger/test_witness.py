"""An older copy of the ledger, or another ledger in its place, is told by the witness."""

import shutil

import pytest

from privacy.budget import Budget, Component
from privacy.errors import IntegrityBroken, LedgerUnavailable, NoLedger
from privacy.ledger import Head, Kind, Ledger
from privacy.ledger.chain import Witness
from privacy.mechanisms import Gaussian


def append(ledger, n=1):
    for i in range(n):
        with ledger.transaction() as t:
            t.append(Kind.DECLARE, {"i": i})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "witness"


@pytest.fixture
def witnessed(any_ledger, again, path):
    opened = again(any_ledger, witness=path)
    yield opened
    opened.close()


def roll_back(ledger, kept):
    """Put the ledger into the state that a copy from then would have."""
    engine = ledger._database.engine
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            found = "SELECT sql FROM sqlite_master WHERE name = 'umbra_ledger_no_delete'"
            trigger = connection.exec_driver_sql(found).scalar()
            connection.exec_driver_sql("DROP TRIGGER umbra_ledger_no_delete")
        else:
            connection.exec_driver_sql("ALTER TABLE umbra_ledger DISABLE TRIGGER USER")
            trigger = "ALTER TABLE umbra_ledger ENABLE TRIGGER USER"
        connection.exec_driver_sql(f"DELETE FROM umbra_ledger WHERE seq > {kept}")
        connection.exec_driver_sql(trigger)


def test_it_holds_the_newest_head_after_every_append(witnessed, path):
    assert path.read_text() == f"{witnessed.ledger_id} {witnessed.head()}\n"
    for _ in range(3):
        append(witnessed)
        assert path.read_text() == f"{witnessed.ledger_id} {witnessed.head()}\n"
    assert Witness(path).head(witnessed.ledger_id) == witnessed.head()
    assert [p.name for p in path.parent.iterdir() if "witness" in p.name] == ["witness"]


@pytest.mark.parametrize("kept", range(1, 6))
def test_every_rollback_is_found(witnessed, again, path, kept):
    append(witnessed, 5)
    head = witnessed.head()
    roll_back(witnessed, kept)
    assert again(witnessed).verify() == []
    assert again(witnessed).verify([head]) != []
    with pytest.raises(IntegrityBroken, match="rolled back"):
        again(witnessed, witness=path)
    with pytest.raises(IntegrityBroken, match="cut off"):
        witnessed.require_sound()
    reader = Ledger.open(witnessed._database.engine.url.render_as_string(False), witness=path)
    assert any("cut off" in f.problem for f in reader.verify())
    assert path.read_text().endswith(f"{head}\n")


def test_a_rollback_that_was_gone_on_with_is_found(witnessed, again, path):
    append(witnessed, 3)
    roll_back(witnessed, 2)
    append(again(witnessed), 5)  # by somebody who has no witness
    with pytest.raises(IntegrityBroken, match="rolled back"):
        again(witnessed, witness=path)
    with pytest.raises(IntegrityBroken, match="history changed"):
        witnessed.require_sound()


def test_an_older_copy_of_the_file_is_found(tmp_path, key, path):
    ledger = Ledger.open(tmp_path / "ledger.db", key, witness=path)
    append(ledger)
    ledger.close()
    shutil.copy(tmp_path / "ledger.db", tmp_path / "old.db")
    append(ledger)
    ledger.close()
    shutil.copy(tmp_path / "old.db", tmp_path / "ledger.db")
    with pytest.raises(IntegrityBroken, match="rolled back"):
        Ledger.open(tmp_path / "ledger.db", key, witness=path)


def test_nothing_is_granted_after_a_rollback_under_an_open_ledger(witnessed, ask):
    budget = Budget(witnessed)
    budget.declare("digits", 10.0, 1e-5)
    plan = [Component("train", Gaussian(60.0, 2))]
    ask(budget, "one", plan)
    roll_back(witnessed, 2)
    with pytest.raises(IntegrityBroken):
        ask(budget, "two", plan)
    assert witnessed.head().seq == 2


def test_no_new_ledger_is_begun_where_one_was_lost(tmp_path, key, path):
    Ledger.open(tmp_path / "ledger.db", key, witness=path).close()
    (tmp_path / "ledger.db").unlink()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(IntegrityBroken, match="Put the ledger back"):
        Ledger.open(tmp_path / "ledger.db", key, witness=path)
    head = path.read_text().split()[0]
    with pytest.raises(IntegrityBroken, match=f"saw the ledger {head} up to row 1"):
        Ledger.open(tmp_path / "ledger.db", witness=path)
    with pytest.raises(NoLedger):
        Ledger.open(tmp_path / "ledger.db")
    assert sorted(tmp_path.iterdir()) == before
    path.unlink()
    Ledger.open(tmp_path / "ledger.db", key, witness=path)


def test_no_new_ledger_is_begun_in_an_emptied_database(postgres, again, path, key):
    url = postgres._database.engine.url.render_as_string(hide_password=False)
    Ledger.open(url, key, witness=path)
    with postgres._database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE umbra_ledger")
    with pytest.raises(IntegrityBroken, match="Put the ledger back"):
        Ledger.open(url, key, witness=path)
    with pytest.raises(NoLedger):
        Ledger.open(url)


def test_another_ledger_in_its_place_is_found(tmp_path, key, path):
    Ledger.open(tmp_path / "one.db", key, witness=path)
    other = Ledger.open(tmp_path / "two.db", key)
    with pytest.raises(IntegrityBroken, match="every budget would be whole again"):
        Ledger.open(tmp_path / "two.db", key, witness=path)
    assert any("whole again" in f.problem for f in Ledger.open(other.where, witness=path).verify())
    assert other.head().seq == 1


@pytest.mark.parametrize(
    "damage", [b"", b"\xff" * 40, b"x", b"0" * 32 + b" 1", b"0" * 32 + b" 1:" + b"0" * 63]
)
def test_a_damaged_witness_is_told_of_and_kept(witnessed, again, path, damage):
    path.write_bytes(damage)
    with pytest.raises(IntegrityBroken, match=r"umbra audit.*delete the file"):
        again(witnessed, witness=path)
    with pytest.raises(IntegrityBroken, match="delete the file"):
        witnessed.require_sound()
    assert path.read_bytes() == damage
    path.unlink()
    again(witnessed, witness=path)
    assert Witness(path).head(witnessed.ledger_id) == witnessed.head()


def test_every_single_byte_of_it_counts(ledger, again, path):
    append(again(ledger, witness=path))
    line = path.read_bytes()
    for i in range(len(line)):
        for flip in (1, 0x20, 0x80):
            path.write_bytes(line[:i] + bytes([line[i] ^ flip]) + line[i + 1 :])
            with pytest.raises(IntegrityBroken):
                again(ledger, witness=path)


def test_what_cannot_be_written_is_said_and_a_repeat_appends_once(witnessed, path, ask):
    budget = Budget(witnessed)
    budget.declare("digits", 10.0, 1e-5)
    reservation = ask(budget, "one", [Component("train", Gaussian(60.0, 20))])
    attempt = budget.begin_attempt(reservation.id, "start")
    content = path.read_bytes()
    path.unlink()
    (path / "in-the-way").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match="older copy"):
            budget.charge(reservation.id, "train", 2, attempt, "once")
    shutil.rmtree(path)
    path.write_bytes(content)
    assert budget.charge(reservation.id, "train", 2, attempt, "once").charged == 2
    assert Witness(path).head(witnessed.ledger_id) == witnessed.head()
    assert witnessed.verify() == []
    assert [p.name for p in path.parent.iterdir() if "witness" in p.name] == ["witness"]


def test_an_older_head_is_no_alarm(witnessed, again, path):
    """What a crash between commit and witness leaves, or two writers that end in another order."""
    append(witnessed)
    older = path.read_bytes()
    append(witnessed, 2)
    path.write_bytes(older)
    reopened = again(witnessed, witness=path)
    assert reopened.verify() == []
    append(reopened)
    assert Witness(path).head(reopened.ledger_id) == reopened.head()


def test_many_writers_leave_a_whole_witness_that_is_never_ahead(
    any_ledger, again, path, in_processes
):
    def work(_):
        own = again(any_ledger, witness=path)
        for _ in range(10):
            append(own)
            found = own._witnessed()
            with own.reading() as view:
                view.require_ancestor(found[0])
        return 0

    assert in_processes(8, work) == [0] * 8
    rows = {Head(row.seq, row.hash) for row in any_ledger.rows()}
    assert len(rows) == 81
    assert Witness(path).head(any_ledger.ledger_id) in rows
    assert again(any_ledger, witness=path).verify() == []


def test_processes_that_begin_a_ledger_at_once_do_not_take_it_for_lost(
    tmp_path, key, path, in_processes
):
    def work(_):
        Ledger.open(tmp_path / "new.db", key, witness=path)
        return 0

    assert in_processes(8, work) == [0] * 8
    assert Ledger.open(tmp_path / "new.db", witness=path).verify() == []


def test_an_unreadable_witness_stops_the_run(witnessed, again, path):
    path.unlink()
    path.mkdir()
    with pytest.raises(LedgerUnavailable, match="cannot be read"):
        again(witnessed, witness=path)
