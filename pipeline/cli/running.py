"""Running a run here, in a process of its own or on a cluster, and what is shown at the end."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from pipeline.cli.output import emit, pairs, table
from pipeline.cluster.authentication import is_jobs_api, require_token
from pipeline.home import Home
from pipeline.progress import Both, LineProgress, Progress, SilentProgress, show_progress
from pipeline.runs.directory import RunDirectory
from pipeline.spec.sections import Workers
from privacy.errors import InvalidRequest, UmbraError

if TYPE_CHECKING:
    from pipeline.cli.summary import Summary
    from pipeline.metrics import PaidMetrics

_SECONDS = 0.2


class _Workers(click.ParamType):
    """A count that a spec would accept, or "auto"."""

    name = "N|auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> Workers:
        given = int(value) if str(value).isdecimal() else value
        try:
            return TypeAdapter(Workers).validate_python(given)
        except ValidationError:
            self.fail(f"expected a number from 1 or 'auto', found {value!r}", param, ctx)


_WHERE = (
    click.option(
        "--address",
        envvar="RAY_ADDRESS",
        help="Ray cluster to run on (HOST:PORT, ray://HOST:PORT), or with --detach its Jobs API "
        "(http://HOST:8265); without it one is started inside this process.",
    ),
    click.option("--detach", is_flag=True, help="Print the run's id and go on in the background."),
    click.option(
        "--workers",
        type=_Workers(),
        help="Training workers and sampling actors of this start, in place of the spec's.",
    ),
)


def where_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say where and on how many workers a run is worked on."""
    for option in reversed(_WHERE):
        command = option(command)
    return command


def require_reachable(address: str | None, detach: bool) -> None:
    """Refuse a cluster that cannot be used before a budget is reserved for a run on it.

    Raises:
        InvalidRequest: a Jobs API was named without --detach.
        UmbraError: nothing answers there, it lets anybody in, or it refuses this process.
    """
    if is_jobs_api(address) and not detach:
        raise InvalidRequest(
            f"{address} is a cluster's Jobs API, where runs go on by themselves: add --detach, or "
            "give the cluster's own address (HOST:PORT)"
        )
    if address is not None:
        require_token(address)


def work_on(
    run: RunDirectory,
    home: Home,
    address: str | None,
    workers: Workers | None,
    detach: bool,
    as_json: bool,
) -> None:
    """Execute `run` and print its summary, or let it go on in the background and print its id."""
    if not detach:
        run_here(run, home, address, workers, as_json)
        return
    said = {"run_id": run.run_id}
    if address is not None and is_jobs_api(address):
        said["job"] = _run_as_job(run, home, address, workers)
    else:
        run_detached(run, address, workers)
    emit(said, as_json, lambda console: console.print(run.run_id))


def _run_as_job(run: RunDirectory, home: Home, address: str, workers: Workers | None) -> str:
    from pipeline.runs.submit_job import submit_job

    try:
        return submit_job(run, home, address, workers).submission_id
    except InvalidRequest:
        raise
    except UmbraError as error:
        raise UmbraError(
            f"{error}. Run {run.run_id} keeps what it reserved: go on with `umbra resume "
            f"{run.run_id}`, or give it back with `umbra cancel --give-up {run.run_id}`"
        ) from None


def run_here(
    run: RunDirectory,
    home: Home,
    address: str | None,
    workers: Workers | None,
    as_json: bool,
) -> None:
    """Execute `run` in this process with progress on stderr, and print its summary."""
    from pipeline.cli.summary import summarise
    from pipeline.runs.engine import execute
    from pipeline.runs.ledger_access import open_budget

    with _progress(run, quiet=as_json) as progress:
        execute(run, home, progress, address, workers)
    budget = open_budget(home)
    summary = summarise(run, home, budget)
    emit(summary.to_dict(), as_json, lambda console: _show(console, summary))


def run_detached(run: RunDirectory, address: str | None, workers: Workers | None) -> None:
    """Execute `run` in a process of its own that outlives this terminal; return when it has begun.

    Raises:
        UmbraError: the process ended before it began to work.
    """
    command = [sys.executable, "-m", "pipeline.cli.main", "resume", run.run_id, "--json"]
    if address:
        command += ["--address", address]
    if workers is not None:
        command += ["--workers", str(workers)]
    begun = run.state().attempt
    with open(run.log_path, "ab") as log:  # noqa: PTH123
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    while run.state().attempt == begun:
        if process.poll() is not None:
            raise UmbraError(
                f"run {run.run_id} did not begin: `umbra logs {run.run_id}` says why. Its budget "
                f"stays reserved; begin it with `umbra resume {run.run_id}`."
            )
        time.sleep(_SECONDS)


@contextmanager
def _progress(run: RunDirectory, quiet: bool) -> Iterator[Progress]:
    """Show progress to the person, and keep it as lines in the run's log."""
    with run.log_path.open("a") as log:
        yield Both(SilentProgress() if quiet else show_progress(), LineProgress(log))


def _show(console: Console, summary: "Summary") -> None:
    if summary.classifiers:
        rows = [
            (name, f"{100 * accuracy:.1f} %", "–" if top is None else f"{100 * top:.1f} %")
            for name, accuracy, top in summary.classifiers
        ]
        columns = ["classifier", "trained on synthetic", "trained on real"]
        console.print(table("Accuracy on the real holdout", columns, rows, [1, 2]))
        scores = [(name, f"{value:.4g}") for name, value in summary.scores]
        console.print(table("Likeness to the real holdout", ["metric", "value"], scores, [1]))
    elif summary.paid:
        _show_paid(console, summary.paid)
    elif summary.withheld:
        console.print(f"{summary.withheld}\n")
    console.print(pairs("Privacy", summary.privacy))
    console.print(pairs("Where", summary.places))


def _show_paid(console: Console, paid: "PaidMetrics") -> None:
    rows = [
        (
            name,
            f"{100 * result.value:.1f} %",
            f"{100 * result.low:.1f} to {100 * result.high:.1f} %",
        )
        for name, result in paid.classifiers.items()
    ]
    columns = ["classifier", "accuracy, noisy", f"{100 * paid.confidence:.0f} % interval"]
    title = f"Accuracy on the private holdout, released for ε = {paid.epsilon}"
    console.print(table(title, columns, rows, [1, 2]))
