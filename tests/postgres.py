"""A real PostgreSQL server of the tests' own, on a socket in a folder of its own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


class NoPostgres(Exception):
    """PostgreSQL cannot be run here, and why."""


@dataclass(frozen=True)
class PostgresServer:
    """A running server; `control` runs pg_ctl on it and returns what went wrong."""

    url: str
    control: Callable[..., str | None]

    def sql(self, *statements):
        """Run statements as another session does, each committed by itself."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def restart(self, mode):
        """Stop and start it again; "immediate" is a crash, after which it recovers."""
        assert self.control("-m", mode, "restart") is None

    def crash(self):
        """Stop it as a power cut does; it answers nobody until `start`."""
        assert self.control("-m", "immediate", "stop") is None

    def start(self):
        """Let it recover and answer again."""
        assert self.control("start") is None


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Run a new server for the block.

    Raises:
        NoPostgres: it is not installed, or does not start.
    """
    pg_ctl = _installed().with_name("pg_ctl")
    folder = Path(tempfile.mkdtemp(prefix="umbra-pg-"))
    user = _unprivileged(folder)
    data = folder / "data"
    options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=200"

    def as_user(*command):
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        done = subprocess.run(command, user=user, cwd=folder, check=False, **streams)
        return done.stderr.decode()[-300:] if done.returncode else None

    def control(*command):
        return as_user(pg_ctl, "-D", data, "-w", "-l", folder / "log", "-o", options, *command)

    initdb = pg_ctl.with_name("initdb")
    failure = as_user(initdb, "-D", data, "-U", "umbra", "-A", "trust", "-E", "UTF8", "--no-sync")
    failure = failure or control("start")
    if failure:
        raise NoPostgres(f"PostgreSQL does not start here: {failure}")
    yield PostgresServer(f"postgresql://umbra@/postgres?host={folder}", control)
    control("-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


def _installed() -> Path:
    initdb = shutil.which("initdb") or next(
        (str(p) for p in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None
    )
    if initdb is None:
        raise NoPostgres("PostgreSQL's initdb is not installed")
    if find_spec("psycopg") is None:
        raise NoPostgres("psycopg is not installed")
    return Path(initdb).resolve()


def _unprivileged(folder: Path) -> str | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, account.pw_uid, account.pw_gid)
        return name
    raise NoPostgres("PostgreSQL refuses to run as root and there is no other account")
