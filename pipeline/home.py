"""UMBRA_HOME: where the ledger, the key, MLflow's files and the runs live."""

import difflib
import getpass
import os
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipeline.runs.directory import FileIn, RunDirectory
from privacy.errors import InvalidRequest, UmbraError

if TYPE_CHECKING:
    from pipeline.spec import Spec

_CLOSEST = 5  # run ids that a message suggests


@dataclass(frozen=True)
class Home:
    """The folder of everything that outlives a run. Nothing is created until it is needed.

    Attributes:
        path: the folder.
        ledger_url: of a database in the folder, or of a server; may hold a password.
        mlflow_uri: the same for MLflow.
        author: recorded beside every row that this home appends to the ledger.
    """

    path: Path
    ledger_url: str
    mlflow_uri: str
    author: str

    key_path = FileIn("key")  # of the fingerprints (mode 0600)
    signing_key_path = FileIn("signing.key")  # the Ed25519 seed, where rows are signed (mode 0600)
    # The newest head of the ledger seen here, by which an older copy is recognised.
    witness_path = FileIn("ledger.head")
    runs_path = FileIn("runs")

    def __repr__(self) -> str:
        return f"Home({str(self.path)!r})"

    @classmethod
    def locate(cls, env: Mapping[str, str] = os.environ) -> "Home":
        """Return the home that UMBRA_HOME names (`~/.umbra` by default); create nothing.

        UMBRA_LEDGER_URL and MLFLOW_TRACKING_URI replace the SQLite files in it, UMBRA_AUTHOR the
        name of the user and the machine.

        Raises:
            UmbraError: it begins with `~`, and no such home folder is known.
        """
        given = Path(env.get("UMBRA_HOME") or "~/.umbra")
        try:
            path = given.expanduser().absolute()
        except RuntimeError:
            # A container may run under a number without an account and without HOME.
            raise UmbraError(
                f"the home folder that {given} begins with is not known: set UMBRA_HOME to a "
                "folder for the ledger and the runs"
            ) from None
        # Who reads these takes % and ? for an URL's own.
        here = f"sqlite:///{quote(str(path))}"
        return cls(
            path=path,
            ledger_url=env.get("UMBRA_LEDGER_URL") or f"{here}/ledger.db",
            mlflow_uri=env.get("MLFLOW_TRACKING_URI") or f"{here}/mlflow.db",
            author=env.get("UMBRA_AUTHOR") or f"{_user()}@{socket.gethostname()}",
        )

    @property
    def artifacts(self) -> Path | None:
        """MLflow's artifacts; None where a server keeps them."""
        return self.path / "mlartifacts" if self.mlflow_uri.startswith("sqlite:") else None

    def ensure(self) -> "Home":
        """Create the folder (mode 0700) if it is missing, and check that it can be written.

        Raises:
            UmbraError: it cannot be made or written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.runs_path.mkdir(mode=0o700, exist_ok=True)
            # Permissions do not show a full disk or a read-only file system: try a write.
            probe = self.path / f".probe-{secrets.token_hex(4)}"
            probe.write_bytes(b"umbra")
            probe.unlink()
        except OSError as error:
            raise UmbraError(
                f"UMBRA_HOME is {self.path}, which cannot be written ({error.strerror}). "
                "Free or repair it, or set UMBRA_HOME to a folder you may write to."
            ) from error
        return self

    def new_run(self, spec: "Spec") -> RunDirectory:
        """Create a run's folder; its id is the spec's name, the UTC time and a random suffix.

        Raises:
            UmbraError: the home or the folder cannot be written.
        """
        self.ensure()
        while True:
            time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
            path = self.runs_path / f"{spec.name}-{time}-{secrets.token_hex(3)}"
            try:
                return RunDirectory.create(path, spec)
            except FileExistsError:
                continue

    def runs(self) -> tuple[RunDirectory, ...]:
        """Return all runs, oldest first."""
        if not self.runs_path.is_dir():
            return ()
        found = (path for path in self.runs_path.iterdir() if path.is_dir())
        return tuple(RunDirectory(path) for path in sorted(found, key=_by_time))

    def run(self, run_id: str) -> RunDirectory:
        """Return the run with this id, or the only one whose id begins with it.

        Raises:
            InvalidRequest: there is none, or more than one.
        """
        runs = {run.run_id: run for run in self.runs()}
        if run_id in runs:
            return runs[run_id]
        matches = [name for name in runs if run_id and name.startswith(run_id)]
        if len(matches) == 1:
            return runs[matches[0]]
        if matches:
            shown = ", ".join(matches[:_CLOSEST])
            raise InvalidRequest(f"{run_id!r} begins {len(matches)} run ids ({shown}): give more.")
        close = difflib.get_close_matches(run_id, runs, n=_CLOSEST, cutoff=0.3)
        hint = f"The closest are: {', '.join(close)}." if close else "`umbra runs` lists them all."
        raise InvalidRequest(f"there is no run {run_id!r} in {self.runs_path}. {hint}")


# Up to the last @ of a word: a password may itself hold @ or /.
_USER = re.compile(r"(?<=://)[^/\s'\"][^\s'\"]*@")
_SECRET = re.compile(r"(?i)([?&][^=&\s]*(?:pass|pwd|secret|token|key)[^=&\s]*=)[^&\s'\")]*")


def without_password(text: str) -> str:
    """Return a text without the users, passwords and tokens of the URLs in it.

    >>> without_password("postgresql://ada:word@db/m?sslpassword=word refused")
    'postgresql://db/m?sslpassword=*** refused'
    """
    return _SECRET.sub(r"\1***", _USER.sub("", text))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"  # a container may run under a number without a name


def _by_time(path: Path) -> tuple[str, str]:
    """Return the sort key: the time in the run id, then the id."""
    return "-".join(path.name.split("-")[-3:]), path.name
