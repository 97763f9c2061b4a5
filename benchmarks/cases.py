"""All sections of the benchmark.

Each is bounded by time: its cases are small enough for a slow machine with two cores, and rounds of
them are timed until `Effort.seconds` have passed.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import RenderableType

from .curves import curves
from .evaluation import (
    classifier_cases,
    distance_cases,
    feature_cases,
    nearest_cases,
    prdc_cases,
)
from .fixed import fixed_cases
from .ledger import audit_cases, charge_cases
from .memory import PEAKS, QUICK_PEAKS, peaks
from .orchestration import orchestration
from .rates import Rate, rates
from .sampling import sampling_cases
from .steps import step_cases
from .table import Result, render, render_curves, render_orchestration, render_peaks, render_rates
from .timing import Case, interleave
from .worker import Workers, in_a_worker
from .workload import COLOUR, PAPER, PAPER_K32, SMALL, Workload
from .writing import writing_cases

Cases = tuple[list[Case], list[str]]


class Measured(Protocol):
    """A result that the report keeps."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        ...


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        title: what is measured.
        kind: key of its results in the report.
        measure: measures it.
        show: makes a table of the results.
    """

    title: str
    kind: str
    measure: Callable[[], Sequence[Measured]]
    show: Callable[[Any], RenderableType]


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        seconds: of timed rounds in a section.
        step: seconds that a non-private step takes at least; sets its number of records.
        images: given to the evaluation.
        ledger_rows: of the ledger that is audited.
        run_steps: of the run on Ray; from 100 on a block of two is charged at a time.
        sizes: whose clipped gradients are timed.
        large_too: whether all else is measured at 28x28 as well as at 8x8.
        peaks: whose memory is measured.
    """

    seconds: float
    step: float
    images: int
    ledger_rows: int
    run_steps: int
    sizes: tuple[Workload, ...]
    large_too: bool
    peaks: Sequence[tuple[str, str, int, int]]


QUICK = Effort(
    seconds=2,
    step=0.05,
    images=2000,
    ledger_rows=1000,
    run_steps=100,
    sizes=(SMALL, PAPER),
    large_too=False,
    peaks=QUICK_PEAKS,
)
FULL = Effort(
    seconds=20,
    step=0.2,
    images=2000,
    ledger_rows=10_000,
    run_steps=100,
    sizes=(SMALL, PAPER, PAPER_K32, COLOUR),
    large_too=True,
    peaks=PEAKS,
)


@contextmanager
def sections(effort: Effort) -> Iterator[list[Section]]:
    """Yield all sections in order; their files are deleted with the end of the block."""
    with tempfile.TemporaryDirectory(prefix="umbra-bench-") as scratch:
        parts = (_steps, _sizes, _evaluation, _runs, _growth)
        yield [section for part in parts for section in part(effort, Path(scratch))]


def device() -> str:
    """Return the type of the device that steps are measured on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _steps(effort: Effort, scratch: Path) -> Iterator[Section]:
    for size in effort.sizes:
        workload = replace(size, kind=device())
        title = f"Clipped gradients, {size.name}"
        measure = partial(_measure_steps, title, workload, effort)
        yield Section(title, "sections", measure, lambda found: render(*found))
    yield Section("Achieved rates", "rates", partial(_rates, effort), render_rates)


def _measure_steps(title: str, workload: Workload, effort: Effort) -> list[Result]:
    with Workers.of_a_training(workload.kind) as workers:
        prepare = partial(step_cases, workload, effort.step, workers)
        return [_compare(title, prepare, effort.seconds)]


def _rates(effort: Effort) -> list[Rate]:
    sizes = _small_and_paper(effort)
    return [
        rate
        for size in sizes
        for rate in rates(replace(size, kind=device()), effort.step, effort.seconds / len(sizes))
    ]


def _sizes(effort: Effort, scratch: Path) -> Iterator[Section]:
    for number, size in enumerate(_small_and_paper(effort)):
        folder = scratch / str(number)
        folder.mkdir()
        fixed = partial(fixed_cases, replace(size, kind=device()), effort.step, folder)
        yield _ratios(effort, f"Fixed costs of a step, {size.name}", fixed, in_worker=True)
        yield _ratios(
            effort, f"Sampling, {size.name}", partial(sampling_cases, size, 4 * effort.step)
        )
        yield _ratios(effort, f"Writing, {size.name}", partial(writing_cases, size, folder))


def _small_and_paper(effort: Effort) -> tuple[Workload, ...]:
    return (SMALL, PAPER) if effort.large_too else (SMALL,)


def _evaluation(effort: Effort, scratch: Path) -> Iterator[Section]:
    n = effort.images
    for title, prepare in (
        ("Gabor features", partial(feature_cases, n // 4)),
        ("Fréchet distance, 512 features", partial(distance_cases, 2 * n, 512)),
        ("Precision and recall", partial(prdc_cases, n, 64)),
        ("Nearest images", partial(nearest_cases, n)),
        ("Classifier logreg", partial(classifier_cases, "logreg", n)),
        ("Classifier cnn", partial(classifier_cases, "cnn", n)),
    ):
        yield _ratios(effort, f"Evaluation: {title}", prepare)


def _runs(effort: Effort, scratch: Path) -> Iterator[Section]:
    folder = scratch / "ledger"
    folder.mkdir()
    yield _ratios(effort, "Ledger: a charge", partial(charge_cases, folder))
    audit = partial(audit_cases, folder, effort.ledger_rows)
    yield _ratios(effort, "Ledger: an audit", audit)
    yield Section(
        "Orchestration of a run",
        "orchestration",
        lambda: [orchestration(effort.run_steps)],
        render_orchestration,
    )


def _growth(effort: Effort, scratch: Path) -> Iterator[Section]:
    yield Section("Peak memory", "memory", lambda: list(peaks(effort.peaks)), render_peaks)
    growth = partial(curves, effort.seconds, device())
    yield Section("Growth of a step's time", "curves", lambda: list(growth()), render_curves)


def _ratios(
    effort: Effort, title: str, prepare: Callable[[], Cases], *, in_worker: bool = False
) -> Section:
    compare = partial(_compare, title, prepare, effort.seconds)

    def measure() -> list[Result]:
        return [in_a_worker(compare) if in_worker else compare()]

    return Section(title, "sections", measure, lambda found: render(*found))


def _compare(title: str, prepare: Callable[[], Cases], seconds: float) -> Result:
    cases, notes = prepare()
    return Result.of(title, cases, interleave(cases, seconds), notes)
