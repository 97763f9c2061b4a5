import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from privacy.budget import Budget, Component
from privacy.ledger import Ledger
from privacy.mechanism import Gaussian

KEY = bytes(range(32))


@pytest.fixture
def key():
    return KEY


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger.open(tmp_path / "ledger.db", KEY)
    yield opened
    opened.close()


@pytest.fixture
def filled(ledger):
    """A ledger of 50 rows with every kind in it."""
    budget = Budget(ledger)
    budget.declare("digits", 10.0, 1e-5)
    plan = [Component("train", Gaussian(60.0, 200)), Component("warm", Gaussian(20.0))]
    reservation = budget.reserve(
        "run-1",
        "digits",
        "print-1",
        1500,
        "one image",
        records_per_unit=1,
        plan=plan,
        void=False,
        idempotency_key="reserve-1",
    )
    budget.charge(reservation.id, "warm", 1, 1, "warm")
    for i in range(43):
        budget.charge(reservation.id, "train", 2, 1, f"charge-{i}")
    budget.settle(reservation.id)
    budget.record_export(reservation.id, "ab" * 32, "60000 images")
    assert ledger.head().seq == 50
    return ledger


@pytest.fixture(scope="session")
def postgres_server():
    """The URL of a real server, started for these tests."""
    initdb = shutil.which("initdb") or next(
        (str(p) for p in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None
    )
    if initdb is None:
        pytest.skip("PostgreSQL's initdb is not installed")
    pytest.importorskip("psycopg")
    pg_ctl = Path(initdb).resolve().with_name("pg_ctl")
    folder = Path(tempfile.mkdtemp(prefix="umbra-pg-"))
    user = _unprivileged(folder)
    data = folder / "data"
    options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=100"

    def as_user(*command):
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        done = subprocess.run(command, user=user, cwd=folder, check=False, **streams)
        if done.returncode:
            pytest.skip(f"PostgreSQL does not start here: {done.stderr.decode()[-300:]}")

    as_user(initdb, "-D", data, "-U", "umbra", "-A", "trust", "-E", "UTF8", "--no-sync")
    as_user(pg_ctl, "-D", data, "-o", options, "-w", "-l", folder / "log", "start")
    yield f"postgresql://umbra@/postgres?host={folder}"
    as_user(pg_ctl, "-D", data, "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


def _unprivileged(folder):
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, account.pw_uid, account.pw_gid)
        return name
    pytest.skip("PostgreSQL refuses to run as root and there is no other account")
    return None


@pytest.fixture
def postgres(postgres_server):
    """A new ledger on PostgreSQL."""
    import psycopg

    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS umbra_ledger")
    opened = Ledger.open(postgres_server, KEY)
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", "postgres"])
def any_ledger(request):
    return request.getfixturevalue("ledger" if request.param == "sqlite" else "postgres")


@pytest.fixture
def in_processes():
    """Run `work(i)` in n forked processes at once; returns their exit codes."""

    def run(n, work):
        children = []
        for i in range(n):
            child = os.fork()
            if child == 0:
                code = 99
                try:
                    code = work(i)
                finally:
                    os._exit(code)
            children.append(child)
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    return run
