"""All that is measured, section by section."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .fixed import fixed_cases
from .ledger import audit_cases, charge_cases
from .sampling import sampling_cases
from .steps import step_cases
from .table import Result
from .timing import Case, interleave
from .workload import COLOUR, LARGE, PAPER, PAPER_K32, SMALL
from .writing import writing_cases

Cases = tuple[list[Case], list[str]]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: times each case is run, in turns.
        small_records, paper_records, large_records: records n in a step of each size.
        ledger_rows: of the ledger that is audited.
    """

    rounds: int
    small_records: int
    paper_records: int
    large_records: int
    ledger_rows: int


QUICK = Effort(rounds=3, small_records=16, paper_records=2, large_records=1, ledger_rows=1000)
FULL = Effort(rounds=7, small_records=64, paper_records=8, large_records=2, ledger_rows=20_000)


def measure(effort: Effort) -> Iterator[Result]:
    """Measure section by section, yielding each when it is done."""
    with tempfile.TemporaryDirectory(prefix="umbra-bench-") as scratch:
        for title, prepare in _sections(effort, Path(scratch)):
            cases, notes = prepare()
            yield Result.of(title, cases, interleave(cases, effort.rounds), notes)


def _sections(effort: Effort, scratch: Path) -> Iterator[tuple[str, Callable[[], Cases]]]:
    sizes = ((SMALL, effort.small_records), (PAPER, effort.paper_records))
    for number, (size, n) in enumerate(sizes):
        folder = scratch / str(number)
        folder.mkdir()
        yield f"Clipped gradients, {size.name}", partial(step_cases, size, n)
        yield f"Fixed costs of a step, {size.name}", partial(fixed_cases, size, n, folder)
        yield f"Sampling, {size.name}", partial(sampling_cases, size)
        yield f"Writing, {size.name}", partial(writing_cases, size, folder)
    for size in (PAPER_K32, COLOUR, LARGE):
        n = effort.large_records
        yield f"Clipped gradients, {size.name}", partial(step_cases, size, n)
    folder = scratch / "ledger"
    folder.mkdir()
    yield "A charge", partial(charge_cases, folder)
    yield "An audit", partial(audit_cases, folder, effort.ledger_rows)
