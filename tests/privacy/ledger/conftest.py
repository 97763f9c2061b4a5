import os
import sqlite3
from contextlib import ExitStack
from pathlib import Path

import pytest

from privacy.budget import Budget, Component
from privacy.budget.identity import Content
from privacy.ledger import Ledger
from privacy.ledger.records import Facts
from privacy.mechanisms import Gaussian
from tests.postgres import NoPostgres, running_postgres

KEY = bytes(range(32))
SIGNING_KEYS = bytes([1]) * 32, bytes([2]) * 32
SCHEMA_1 = Path(__file__).with_name("schema_1")


@pytest.fixture
def key():
    return KEY


@pytest.fixture
def signing_keys():
    """The key that `filled` was signed with first, and the one that followed it."""
    return SIGNING_KEYS


@pytest.fixture
def old_sqlite(tmp_path):
    """The path of a ledger of schema 1 with 11 rows."""
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    for name in ("sqlite.sql", "rows.sql"):
        connection.executescript((SCHEMA_1 / name).read_text(encoding="utf-8"))
    connection.close()
    return path


@pytest.fixture
def filled(old_sqlite, tmp_path):
    """A ledger of 61 rows with every kind in it: begun in schema 1, migrated, authored, signed."""
    path, first, second = old_sqlite, *SIGNING_KEYS
    ledger = Ledger.open(path, KEY, author="officer@desk", witness=tmp_path / "witness")
    budget = Budget(ledger)
    for name in ("faces", "faces-2"):
        budget.declare(name, 10.0, 1e-5)
    budget.accept_overlap("faces", "faces-2")
    ledger.start_signing(first)
    plan = [Component("train", Gaussian(60.0, 200)), Component("warm", Gaussian(20.0))]
    reservation = reserve(budget, "run-1", plan, dataset="faces")
    attempt = budget.begin_attempt(reservation.id, "start-1")
    budget.charge(reservation.id, "warm", 1, attempt, "warm")
    for i in range(14):
        budget.charge(reservation.id, "train", 2, attempt, f"charge-{i}")
    ledger.start_signing(second)
    attempt = budget.begin_attempt(reservation.id, "start-2")
    for i in range(11):
        budget.charge(reservation.id, "train", 2, attempt, f"again-{i}")
    budget.settle(reservation.id)
    budget.close("faces")
    budget.record_export(reservation.id, "ab" * 32, "60000 images")
    assert ledger.head().seq == 52
    budget.declare("hands", 10.0, 1e-5, Facts("patient", 3))
    budget.accept_overlap("hands", "digits")
    train, holdout = (
        Content(f"print-of-{name}", 3, (f"{i:016x}",), i.to_bytes(8, "big"))
        for i, name in enumerate(("hands", "other-hands"))
    )
    budget.reserve(
        "run-3", "hands", train, plan=plan, void=False, idempotency_key="run-3", holdout=holdout
    )
    assert ledger.head().seq == 61
    yield ledger
    ledger.close()


def reserve(budget, key, plan, dataset="digits"):
    """Ask for a plan on the one content that the tests know of a data set."""
    content = Content(f"print-of-{dataset}", 1500, (f"{len(dataset):016x}",))
    return budget.reserve(
        f"run-{key}", dataset, content, "one image", records_per_unit=1,
        plan=plan, void=False, idempotency_key=str(key),
    )  # fmt: skip


@pytest.fixture
def ask():
    """`ask(budget, key, plan)` reserves a plan for the data set "digits"."""
    return reserve


@pytest.fixture
def again():
    """Open a ledger as another process would: it has the path or the URL, and nothing else."""

    def run(ledger, **options):
        url = ledger._database.engine.url.render_as_string(hide_password=False)
        return Ledger.open(url, KEY, **options)

    return run


@pytest.fixture(scope="session")
def postgres_server():
    """A real server, started for these tests."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(running_postgres())
        except NoPostgres as reason:
            pytest.skip(str(reason))
        yield server


@pytest.fixture
def empty_postgres(postgres_server):
    """The server without a ledger."""
    postgres_server.sql("DROP TABLE IF EXISTS umbra_ledger")
    return postgres_server


@pytest.fixture
def postgres(empty_postgres):
    """A new ledger on PostgreSQL."""
    opened = Ledger.open(empty_postgres.url, KEY)
    yield opened
    opened.close()


@pytest.fixture
def old_postgres(empty_postgres):
    """The URL of a ledger of schema 1 with 11 rows."""
    for name in ("postgresql.sql", "rows.sql"):
        empty_postgres.sql((SCHEMA_1 / name).read_text(encoding="utf-8"))
    return empty_postgres.url


@pytest.fixture(params=["sqlite", "postgres"])
def any_old(request):
    """Path or URL of a ledger of schema 1 with 11 rows."""
    return request.getfixturevalue(f"old_{request.param}")


@pytest.fixture(params=["sqlite", "postgres"])
def any_ledger(request):
    return request.getfixturevalue("ledger" if request.param == "sqlite" else "postgres")


@pytest.fixture
def in_processes():
    """Run `work(i)` in n forked processes; returns their exit codes.

    They are let go together once all of them are there, so that forking takes no part in the race.
    """

    def run(n, work):
        gate, opener = os.pipe()
        children = []
        for i in range(n):
            child = os.fork()
            if child == 0:
                code = 99
                try:
                    os.close(opener)
                    os.read(gate, 1)
                    code = work(i)
                finally:
                    os._exit(code)
            children.append(child)
        os.close(opener)
        os.close(gate)
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    return run
