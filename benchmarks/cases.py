"""All that is measured, section by section."""

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
    ball_cases,
    classifier_cases,
    distance_cases,
    feature_cases,
    nearest_cases,
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
from .workload import COLOUR, LARGE, PAPER, PAPER_K16, PAPER_K32, SMALL, Workload
from .writing import writing_cases

Cases = tuple[list[Case], list[str]]

# A GPU is left idle by a CPU's handful of records: this many times more, up to so many.
_GPU_TIMES, _GPU_MOST = 32, 1024


class Measured(Protocol):
    """A number, or several, that the report keeps."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        ...


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        title: what is measured.
        kind: the report's key for it.
        measure: does it.
        show: makes a table of what was measured.
    """

    title: str
    kind: str
    measure: Callable[[], Sequence[Measured]]
    show: Callable[[Any], RenderableType]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: times each case is run, in turns.
        small_records, paper_records, large_records: records n in a step of each size.
        curve_rounds: times each point of a curve is run.
        images: that the evaluation is given.
        ledger_rows: of the ledger that is audited.
        run_steps: of the run on Ray.
        rated: sizes whose steps are held against the device's rates.
        sampled: sizes that are sampled from.
        slow_rounds: of what takes longest: large sizes, rates, sampling, classifiers.
        peaks: whose memory is measured.
    """

    rounds: int
    small_records: int
    paper_records: int
    large_records: int
    curve_rounds: int
    images: int
    ledger_rows: int
    run_steps: int
    rated: tuple[Workload, ...]
    sampled: tuple[Workload, ...]
    slow_rounds: int
    peaks: Sequence[tuple[str, str, int, int]]


QUICK = Effort(
    rounds=3,
    small_records=16,
    paper_records=2,
    large_records=1,
    curve_rounds=2,
    images=2000,
    ledger_rows=1000,
    run_steps=20,
    rated=(SMALL, PAPER),
    sampled=(SMALL,),
    slow_rounds=2,
    peaks=QUICK_PEAKS,
)
FULL = Effort(
    rounds=7,
    small_records=256,
    paper_records=4,
    large_records=2,
    curve_rounds=7,
    images=2000,
    ledger_rows=20_000,
    run_steps=80,
    rated=(SMALL, PAPER, PAPER_K32, COLOUR, LARGE),
    sampled=(SMALL, PAPER),
    slow_rounds=4,
    peaks=PEAKS,
)


@contextmanager
def sections(effort: Effort) -> Iterator[list[Section]]:
    """Yield all sections in order; their files last as long as the block."""
    with tempfile.TemporaryDirectory(prefix="umbra-bench-") as scratch:
        parts = (_of_sizes, _of_rates, _of_evaluation, _of_runs, _of_growth)
        yield [section for part in parts for section in part(effort, Path(scratch))]


def device() -> str:
    """Return the type of the device that steps are measured on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _of_sizes(effort: Effort, scratch: Path) -> Iterator[Section]:
    for number, (size, n) in enumerate(_sizes(effort)):
        folder = scratch / str(number)
        folder.mkdir()
        large = size.name not in (SMALL.name, PAPER.name)
        yield _steps(effort.slow_rounds if large else effort.rounds, size, n)
        if large:
            continue
        here = replace(size, kind="cpu")
        fixed = partial(fixed_cases, size, n, folder)
        title = f"Fixed costs of a step, {size.name}"
        yield _ratios(effort.rounds, title, fixed, by_a_worker=True)
        if here in effort.sampled:
            slow = effort.slow_rounds
            yield _ratios(slow, f"Sampling, {size.name}", partial(sampling_cases, here))
        yield _ratios(effort.rounds, f"Writing, {size.name}", partial(writing_cases, here, folder))


def _steps(rounds: int, size: Workload, n: int) -> Section:
    title = f"Clipped gradients, {size.name}"

    def measure() -> list[Result]:
        with Workers.of_a_training(size.kind) as workers:
            return [_compared(title, partial(step_cases, size, n, workers), rounds)]

    return Section(title, "sections", measure, lambda found: render(*found))


def _of_rates(effort: Effort, scratch: Path) -> Iterator[Section]:
    def measure() -> list[Rate]:
        sizes = [(s, n) for s, n in _sizes(effort) if replace(s, kind="cpu") in effort.rated]
        return [rate for size, n in sizes for rate in rates(size, n, effort.slow_rounds)]

    yield Section("Achieved rates", "rates", measure, render_rates)


def _sizes(effort: Effort) -> list[tuple[Workload, int]]:
    large = effort.large_records
    paper = effort.paper_records
    records = {SMALL: effort.small_records, PAPER: paper, PAPER_K16: paper}
    records |= dict.fromkeys((PAPER_K32, COLOUR, LARGE), large)
    if device() == "cuda":
        records = {size: min(_GPU_TIMES * n, _GPU_MOST) for size, n in records.items()}
    return [(replace(size, kind=device()), n) for size, n in records.items()]


def _of_evaluation(effort: Effort, scratch: Path) -> Iterator[Section]:
    n, slow = effort.images, effort.slow_rounds
    for title, prepare in (
        ("Gabor features", partial(feature_cases, n)),
        ("Fréchet distance, 64 features", partial(distance_cases, 2 * n, 64)),
        ("Fréchet distance, 512 features", partial(distance_cases, 2 * n, 512)),
        ("Precision and recall", partial(ball_cases, n, 64)),
        ("Nearest images", partial(nearest_cases, n)),
    ):
        yield _ratios(effort.rounds, f"Evaluation: {title}", prepare)
    for name in ("logreg", "cnn"):
        prepare = partial(classifier_cases, name, n)
        yield _ratios(slow, f"Evaluation: Classifier {name}", prepare)


def _of_runs(effort: Effort, scratch: Path) -> Iterator[Section]:
    folder = scratch / "ledger"
    folder.mkdir()
    yield _ratios(effort.rounds, "Ledger: a charge", partial(charge_cases, folder))
    rows = effort.ledger_rows
    yield _ratios(effort.rounds, "Ledger: an audit", partial(audit_cases, folder, rows))
    yield Section(
        "Orchestration of a run",
        "orchestration",
        lambda: [orchestration(effort.run_steps)],
        render_orchestration,
    )


def _of_growth(effort: Effort, scratch: Path) -> Iterator[Section]:
    yield Section("Peak memory", "memory", lambda: list(peaks(effort.peaks)), render_peaks)
    growth = partial(curves, effort.curve_rounds, device())
    yield Section("Growth of a step's time", "curves", lambda: list(growth()), render_curves)


def _ratios(
    rounds: int, title: str, prepare: Callable[[], Cases], *, by_a_worker: bool = False
) -> Section:
    compare = partial(_compared, title, prepare, rounds)

    def measure() -> list[Result]:
        return [in_a_worker(compare) if by_a_worker else compare()]

    return Section(title, "sections", measure, lambda found: render(*found))


def _compared(title: str, prepare: Callable[[], Cases], rounds: int) -> Result:
    cases, notes = prepare()
    return Result.of(title, cases, interleave(cases, rounds), notes)
