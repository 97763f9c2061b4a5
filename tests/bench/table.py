"""What was measured, as a table to read and as JSON to keep."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from .curves import Curve
from .memory import Peak
from .timing import Case, Ratio


@dataclass(frozen=True)
class Row:
    """One case: seconds (median), its ratio to the base of its section and to its peer."""

    case: str
    seconds: float
    ratio: Ratio
    peer: str | None
    peer_ratio: Ratio | None


@dataclass(frozen=True)
class Result:
    """A section of the benchmark.

    Attributes:
        title: what was compared.
        base: the case whose ratio is 1.
        rounds: times each case was timed.
        notes: what a reader must know to judge the numbers.
        rows: the base and all others, in order.
    """

    title: str
    base: str
    rounds: int
    notes: tuple[str, ...]
    rows: tuple[Row, ...]

    @classmethod
    def of(
        cls,
        title: str,
        cases: Sequence[Case],
        seconds: Mapping[str, Sequence[float]],
        notes: Sequence[str] = (),
    ) -> "Result":
        """Compare what `interleave` measured; the first case is the base."""
        base = cases[0].name
        rows = tuple(
            Row(
                case.name,
                statistics.median(seconds[case.name]),
                Ratio.of(seconds[case.name], seconds[base]),
                case.peer,
                Ratio.of(seconds[case.name], seconds[case.peer]) if case.peer else None,
            )
            for case in cases
        )
        return cls(title, base, len(seconds[base]), tuple(notes), rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def render(result: Result) -> Group:
    """Return the table of a section and its notes.

    Times are there to be divided, the ratios to be quoted.
    """
    table = Table(
        title=Text(f"{result.title} ({result.rounds} rounds)"),
        box=box.SIMPLE,
        title_justify="left",
    )
    table.add_column("case", overflow="fold")
    peers = any(row.peer for row in result.rows)
    headings = ["ms", "ratio", "low to high", *(["to its peer", "low to high"] if peers else [])]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        cells: list[str | Text] = [Text(row.case), number(row.seconds * 1e3), *_ratio(row.ratio)]
        if peers:
            cells += _ratio(row.peer_ratio) if row.peer_ratio else ["", ""]
        table.add_row(*cells)
    return Group(table, *(Text(f"  {note}", style="dim") for note in result.notes), "")


def render_peaks(peaks: Sequence[Peak]) -> Table:
    """Return the table of peak memory."""
    table = _plain_table("Peak memory of a step, above what the process held before it")
    for heading in ("size", "way", "records", "micro-batch", "MiB"):
        table.add_column(heading)
    for peak in peaks:
        counts = str(peak.records), str(peak.micro_batch)
        table.add_row(peak.workload, peak.way, *counts, number(peak.mib))
    return table


def render_curves(curves: Sequence[Curve]) -> Table:
    """Return the table of how cost grows."""
    table = _plain_table("Growth of a step's time")
    for heading in ("against", "sizes", "ms", "R²", "what does not grow"):
        table.add_column(heading)
    for curve in curves:
        sizes = " ".join(f"{x:g}" for x in curve.x)
        times = " ".join(number(s * 1e3) for s in curve.seconds)
        straight, rest = f"{curve.r_squared:.4f}", f"{100 * curve.intercept:.0f} %"
        table.add_row(curve.title, sizes, times, straight, rest)
    return table


def _plain_table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE, title_justify="left")


def number(value: float) -> str:
    """Write a positive number with three significant digits, those before the point kept."""
    if value >= 99.5:
        return f"{value:,.0f}"
    if value >= 9.95:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.995 else f"{value:.3g}"


def _ratio(ratio: Ratio) -> list[str]:
    return [number(ratio.median), f"{number(ratio.low)} to {number(ratio.high)}"]
