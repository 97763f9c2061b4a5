"""The database fails in the middle: nothing is charged twice, nothing is lost, nothing breaks."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from sqlalchemy import event

from privacy.budget import Budget, Component
from privacy.errors import LedgerUnavailable
from privacy.ledger import Kind, Ledger
from privacy.mechanisms import Gaussian

PLAN = [Component("train", Gaussian(1000.0, 100_000))]


def append(ledger, n=1):
    with ledger.transaction() as t:
        for _ in range(n):
            t.append(Kind.DECLARE, {"text": "x" * 2000})


def until_answered(call):
    """Repeat a call as its callers do; returns its answer and how often it was refused."""
    refused = 0
    while True:
        try:
            return call(), refused
        except LedgerUnavailable:
            refused += 1
            time.sleep(0.005)
            assert refused < 10_000


def spend(budget, ask, name, charges):
    """Reserve, charge so many blocks of 3 steps, settle; each call is repeated until it answers."""
    reservation, refused = until_answered(lambda: ask(budget, name, PLAN))
    attempt, more = until_answered(lambda: budget.begin_attempt(reservation.id, name))
    refused += more
    for i in range(charges):
        receipt, more = until_answered(
            lambda i=i: budget.charge(reservation.id, "train", 3, attempt, f"block-{i}")
        )
        assert receipt.charged == 3 * (i + 1)
        refused += more
    settlement, more = until_answered(lambda: budget.settle(reservation.id))
    assert settlement.charged == {"train": 3 * charges}
    return refused + more


def require_each_once(ledger, reservations, charges):
    """Everything that was asked for is there once, in a ledger that verifies."""
    kinds = [row.kind for row in ledger.rows()]
    assert kinds.count(Kind.RESERVE) == kinds.count(Kind.ATTEMPT) == reservations
    assert kinds.count(Kind.SETTLE) == reservations
    assert kinds.count(Kind.CHARGE) == reservations * charges
    assert ledger.verify() == []


@pytest.fixture
def budget(any_ledger, tmp_path, again):
    ledger = again(any_ledger, author="officer@desk", witness=tmp_path / "witness")
    ledger.start_signing(bytes(32))
    budget = Budget(ledger)
    budget.declare("digits", 10.0, 1e-5)
    yield budget
    ledger.close()


@pytest.fixture
def calls(budget, ask):
    """One call of each kind that appends, in an order in which they can be made."""
    reservation = ask(budget, "r", PLAN)
    attempt = budget.begin_attempt(reservation.id, "first")
    budget.charge(reservation.id, "train", 3, attempt, "first")
    return {
        "declare": lambda: budget.declare("faces", 1.0, 1e-5),
        "overlap": lambda: budget.accept_overlap("digits", "faces"),
        "reserve": lambda: ask(budget, "r2", PLAN).id,
        "charge": lambda: budget.charge(reservation.id, "train", 3, 1, "second"),
        "attempt": lambda: budget.begin_attempt(reservation.id, "second"),
        "settle": lambda: budget.settle(reservation.id),
        "export": lambda: budget.record_export(reservation.id, "ab" * 32, "60000 images"),
        "close": lambda: budget.close("faces"),
        "signer": lambda: budget.ledger.start_signing(bytes([1]) * 32),
    }


def driver_error(ledger):
    return ledger._database.engine.dialect.loaded_dbapi.OperationalError("the disk is gone")


@contextmanager
def fault_at(ledger, n):
    """Let the n-th statement from now on fail, commits counted as well; yields how many came."""
    count = [0]

    def step(*_):
        count[0] += 1
        if count[0] == n:
            raise driver_error(ledger)

    engine = ledger._database.engine
    event.listen(engine, "before_cursor_execute", step)
    event.listen(engine, "commit", step)
    try:
        yield count
    finally:
        event.remove(engine, "before_cursor_execute", step)
        event.remove(engine, "commit", step)


def test_a_fault_at_any_statement_of_any_call_leaves_nothing_behind(budget, calls):
    ledger = budget.ledger
    for name, call in calls.items():
        before, n = ledger.head(), 1
        while True:
            with fault_at(ledger, n) as count:
                try:
                    answer = call()
                except Exception as error:
                    assert "the disk is gone" in str(error), name
                    answer = None
            if count[0] < n:  # it ended before the fault could come
                break
            assert answer is None, (name, n)
            assert ledger.head() == before, (name, n)
            n += 1
        assert n > 4, name
        assert ledger.head().seq > before.seq
        assert call() == answer
    assert ledger.verify() == []


def test_an_answer_lost_after_the_commit_is_given_to_the_repeat(budget, calls, monkeypatch):
    ledger = budget.ledger
    dialect = ledger._database.engine.dialect
    commit = dialect.do_commit

    def commit_and_lose(connection):
        commit(connection)
        raise driver_error(ledger)

    for name, call in calls.items():
        before = ledger.head()
        with monkeypatch.context() as patched:
            # Verification only reads: here it is not to be what fails.
            patched.setattr(ledger, "require_sound", lambda: None)
            patched.setattr(dialect, "do_commit", commit_and_lose)
            with pytest.raises(LedgerUnavailable, match="the disk is gone"):
                call()
        there = ledger.head()
        assert there.seq > before.seq, name
        call()
        assert ledger.head() == there, name
    assert ledger.verify() == []


def test_a_killed_connection_charges_once(postgres, postgres_server, again, ask):
    """Another session ends ours at random instants, during the commit included."""
    budget = Budget(again(postgres))
    budget.declare("digits", 10.0, 1e-5)
    done, kills, chance = threading.Event(), [], random.Random(0)

    def kill():
        import psycopg

        with psycopg.connect(postgres_server.url, autocommit=True) as connection:
            # Long enough a pause that a call can end, or none would ever be answered.
            while not done.wait(chance.uniform(0, 0.2)):
                ended = connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                ).fetchall()
                kills.extend(ended)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        refused = sum(spend(budget, ask, f"run-{i}", 40) for i in range(4))
    finally:
        done.set()
        killer.join()
    assert kills
    assert refused > 0
    require_each_once(postgres, 4, 40)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restarted_server_charges_once(postgres, postgres_server, again, ask, mode):
    budget = Budget(again(postgres))
    budget.declare("digits", 10.0, 1e-5)
    done, restarts = threading.Event(), []

    def restart():
        for _ in range(3):
            postgres_server.restart(mode)
            restarts.append(mode)
        done.set()

    thread = threading.Thread(target=restart)
    thread.start()
    reservations, refused = 0, 0
    while not done.is_set():
        refused += spend(budget, ask, f"run-{reservations}", 10)
        reservations += 1
    thread.join()
    assert restarts == [mode] * 3
    assert refused > 0
    require_each_once(postgres, reservations, 10)


def test_an_interrupted_sqlite_charges_once(ledger, again, ask):
    """Statements are broken off at random instants from another thread."""
    opened, done, chance = [], threading.Event(), random.Random(0)
    own = again(ledger)
    event.listen(own._database.engine, "connect", lambda connection, _: opened.append(connection))
    own._database.engine.dispose()

    def interrupt():
        while not done.wait(chance.uniform(0, 0.002)):
            for connection in opened[-1:]:
                connection.interrupt()

    budget = Budget(own)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        until_answered(lambda: budget.declare("digits", 10.0, 1e-5))
        refused = sum(spend(budget, ask, f"run-{i}", 20) for i in range(5))
    finally:
        done.set()
        thread.join()
    assert refused > 0
    require_each_once(ledger, 5, 20)


def test_a_locked_file_is_waited_for_and_then_said(ledger, tmp_path, again, ask, monkeypatch):
    monkeypatch.setattr("privacy.ledger.database.WAIT_S", 0.05)
    budget = Budget(again(ledger))
    budget.declare("digits", 10.0, 1e-5)
    reservation = ask(budget, "r", PLAN)
    attempt = budget.begin_attempt(reservation.id, "start")
    other = sqlite3.connect(tmp_path / "ledger.db")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="locked"):
        budget.charge(reservation.id, "train", 3, attempt, "once")
    other.rollback()
    other.close()
    assert budget.charge(reservation.id, "train", 3, attempt, "once").charged == 3
    assert ledger.verify() == []


def test_a_full_disk_charges_once_when_there_is_room_again(ledger, again, ask):
    budget = Budget(ledger)
    budget.declare("digits", 10.0, 1e-5)
    reservation = ask(budget, "r", PLAN)
    attempt = budget.begin_attempt(reservation.id, "start")

    def limit(pages):
        def no_room(connection):
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

        return no_room

    full = limit(1)  # SQLite takes the present size for it: not a page more
    event.listen(ledger._database.engine, "begin", full)
    refused_at = None
    for i in range(200):
        try:
            budget.charge(reservation.id, "train", 3, attempt, f"block-{i}")
        except LedgerUnavailable as error:
            assert "full" in str(error)
            refused_at = i
            break
    assert refused_at is not None
    before = ledger.head()
    with pytest.raises(LedgerUnavailable, match="full"):
        budget.charge(reservation.id, "train", 3, attempt, f"block-{refused_at}")
    assert ledger.head() == before
    assert ledger.verify() == []
    event.remove(ledger._database.engine, "begin", full)
    event.listen(ledger._database.engine, "begin", limit(1 << 30))
    for i in range(refused_at + 5):
        receipt = budget.charge(reservation.id, "train", 3, attempt, f"block-{i}")
        assert receipt.charged == 3 * (i + 1)
    assert ledger.verify() == []


def test_a_file_size_limit_leaves_no_half_row(ledger, tmp_path, key, in_processes):
    """The kernel refuses the write itself, in the middle of a transaction."""
    import resource

    def work(_):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        own = Ledger.open(tmp_path / "ledger.db", key)
        try:
            append(own, 500)
        except LedgerUnavailable:
            return 0
        return 1

    assert in_processes(1, work) == [0]
    assert ledger.head().seq == 1
    assert ledger.verify() == []


def test_a_read_only_file_is_said(ledger, tmp_path, key):
    """As another account where the tests run as root, whom permissions do not stop."""
    ledger.close()
    (tmp_path / "ledger.db").chmod(0o444)
    tmp_path.chmod(0o555)
    code = (
        "import sys, os\n"
        "from privacy.ledger import Ledger, Kind\n"
        "from privacy.errors import LedgerUnavailable\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    with Ledger.open('ledger.db', bytes(range(32))).transaction() as t:\n"
        "        t.append(Kind.DECLARE, {})\n"
        "except LedgerUnavailable as error: print(error)\n"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    finally:
        tmp_path.chmod(0o755)
    assert "Without it nothing private may run" in done.stdout, done.stderr
    assert ledger.head().seq == 1


def test_a_deleted_file_stops_the_run(ledger, tmp_path, key):
    append(ledger)
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(LedgerUnavailable, match="deleted or replaced"):
        append(ledger)
    Ledger.open(tmp_path / "ledger.db", key)
    with pytest.raises(LedgerUnavailable, match="deleted or replaced"):
        append(ledger)
