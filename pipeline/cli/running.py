"""Running a run in this process or in one of its own, and what is shown at the end."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from pipeline.cli.output import emit, pairs, table
from pipeline.home import Home
from pipeline.progress import Both, LineProgress, Progress, SilentProgress, show_progress
from pipeline.run_directory import RunDirectory
from privacy.errors import UmbraError

if TYPE_CHECKING:
    from pipeline.paid_metrics import PaidMetrics
    from pipeline.summary import Summary

_SECONDS = 0.2


def run_here(run: RunDirectory, home: Home, address: str | None, as_json: bool) -> None:
    """Execute `run` in this process with progress on stderr, and print its summary."""
    from pipeline.engine import execute
    from pipeline.ledger_access import open_budget
    from pipeline.summary import summarise

    with _progress(run, quiet=as_json) as progress:
        execute(run, home, progress, address)
    budget = open_budget(home)
    summary = summarise(run, home, budget)
    emit(summary.to_dict(), as_json, lambda console: _show(console, summary))


def run_detached(run: RunDirectory, address: str | None) -> None:
    """Execute `run` in a process of its own that outlives this terminal; return when it has begun.

    Raises:
        UmbraError: the process ended before it began to work.
    """
    command = [sys.executable, "-m", "pipeline.cli.main", "resume", run.run_id, "--json"]
    if address:
        command += ["--address", address]
    with open(run.log_path, "ab") as log:  # noqa: PTH123
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    while run.state().status == "created":
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
