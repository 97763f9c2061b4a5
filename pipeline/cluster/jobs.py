"""Runs as jobs of a Ray cluster: submitted, queried and stopped through its Jobs API."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.cluster.connection import OPEN_CLUSTER, require_token
from pipeline.home import Home
from pipeline.runs.directory import JOB_VARIABLE, RayJob
from pipeline.spec import Workers
from privacy.errors import UmbraError

# Ray's client lets these replace the address it is given; a job is queried where it was submitted.
_MISLEADING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_STOP_SECONDS = "30"  # from the request to stop until a job is killed; Ray's own 3 s are too few
_SECRET_WORDS = ("pass", "pwd", "secret", "token", "key")
_OURS = "umbra: "


@dataclass(frozen=True)
class JobReport:
    """The status of a job; "gone" is one that the cluster does not know, or no longer."""

    status: Literal["pending", "running", "stopped", "succeeded", "failed", "gone"]
    message: str = ""  # Umbra's last line in the job's output, or Ray's reason if it never began

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status not in {"pending", "running"}


class Jobs:
    """The Jobs API of one cluster.

    Raises:
        UmbraError: it cannot be reached, is open to everybody, or refuses this process.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        require_token(self.address)
        from ray.job_submission import JobSubmissionClient

        hidden = {name: os.environ.pop(name) for name in _MISLEADING if name in os.environ}
        try:
            with _sanitized(self.address):
                self._client = JobSubmissionClient(self.address)
        finally:
            os.environ.update(hidden)

    def submit(self, job: RayJob, run_id: str, home: Home, workers: Workers | None) -> None:
        """Submit a job that continues a run on the cluster it runs in.

        Raises:
            UmbraError: the cluster refused it.
        """
        # The command itself reserves no processor: its workers wait for theirs.
        command = ["umbra", "resume", run_id, "--json", "--yes"]
        command += [] if workers is None else ["--workers", str(workers)]
        variables = job_environment(home) | {JOB_VARIABLE: job.submission_id}
        with _sanitized(self.address):
            self._client.submit_job(
                entrypoint=f"exec {shlex.join(command)}",
                submission_id=job.submission_id,
                runtime_env={"env_vars": variables},
            )

    def report(self, job: RayJob) -> JobReport:
        """Return a job's status; `UmbraError` if the cluster cannot be reached."""
        try:
            with _sanitized(self.address):
                found = self._client.get_job_info(job.submission_id)
        except _NoSuchJob:
            return JobReport("gone")
        status: Any = found.status.value.lower()
        return JobReport(status, _last_line(found.message or ""))

    def stop(self, job: RayJob) -> None:
        """Request that a job stops, which may take some seconds; raises as `report` does."""
        with suppress(_NoSuchJob), _sanitized(self.address):
            self._client.stop_job(job.submission_id)


def job_environment(home: Home) -> dict[str, str]:
    """Return a job's environment. The dashboard shows it: no variable holds a secret.

    An address with a password in it is left out, and the cluster's own takes its place.
    """
    places = {"UMBRA_LEDGER_URL": home.ledger_url, "MLFLOW_TRACKING_URI": home.mlflow_uri}
    return {
        "UMBRA_HOME": str(home.path),
        "UMBRA_AUTHOR": home.author,
        **{name: url for name, url in places.items() if not _holds_secret(url)},
        **({OPEN_CLUSTER: "1"} if os.environ.get(OPEN_CLUSTER) == "1" else {}),
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_JOB_STOP_WAIT_TIME_S": _STOP_SECONDS,
    }


def _holds_secret(url: str) -> bool:
    parts = urlsplit(url)
    # What stands before an HTTP server's "@" may be a token all by itself.
    user, _, _ = parts.netloc.rpartition("@")
    web = parts.scheme in {"http", "https"}
    query = parts.query.lower()
    return ":" in user or (web and bool(user)) or any(word in query for word in _SECRET_WORDS)


class _NoSuchJob(UmbraError):
    """The cluster does not know the job."""


@contextmanager
def _sanitized(address: str) -> Iterator[None]:
    """Replace errors of Ray's client, which may hold the server's trace, by a sentence."""
    try:
        yield
    except UmbraError:
        raise
    except Exception as error:
        status = str(error).partition("status code ")[2][:3]
        if status == "404":
            raise _NoSuchJob(f"the Jobs API at {address} knows no such job") from None
        why = f"HTTP {status}" if status.isdigit() else type(error).__name__
        raise UmbraError(
            f"the Jobs API at {address} refused or did not answer ({why}); its log on the cluster "
            "(dashboard.log) says more"
        ) from None


def _last_line(message: str) -> str:
    """Return Umbra's last line in a job's output, else the first line of Ray's own reason."""
    lines = [line.strip() for line in message.strip().splitlines()]
    ours = [line.removeprefix(_OURS) for line in lines if line.startswith(_OURS)]
    return ours[-1] if ours else (lines or [""])[0]
