"""Results as tables to read and as JSON to keep."""

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
from .orchestration import MAX_SHARE, STEP_SECONDS, TOTALS, Orchestration
from .rates import NOTES, Rate
from .timing import Case, Ratio
from .workload import SMALL


@dataclass(frozen=True)
class Row:
    """One case: median seconds, ratio to the base of its section and to its peer."""

    case: str
    seconds: float
    ratio: Ratio
    peer: str | None
    peer_ratio: Ratio | None


@dataclass(frozen=True)
class Result:
    """The ratios of a section.

    Attributes:
        title: what was compared.
        base: the case whose ratio is 1.
        rounds: number of samples of each case.
        notes: what a reader needs to judge the numbers.
        rows: the base and all other cases, in order.
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
        """Compare the samples of `interleave`; the first case is the base."""
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
    """Return the table of a section and its notes."""
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
    return Group(table, _notes(result.notes), "")


def render_peaks(peaks: Sequence[Peak]) -> Table:
    """Return the table of peak memory."""
    table = _plain_table("Peak memory of a step, above what the process held before")
    for heading in ("size", "way", "records", "micro-batch", "MiB"):
        table.add_column(heading)
    for peak in peaks:
        counts = str(peak.records), str(peak.micro_batch)
        table.add_row(peak.workload, peak.way, *counts, number(peak.mib))
    return table


def render_curves(curves: Sequence[Curve]) -> Table:
    """Return the table of growth."""
    table = _plain_table("Growth of a step's time")
    for heading in ("against", "sizes", "ms", "R²", "constant part"):
        table.add_column(heading)
    for curve in curves:
        sizes = " ".join(f"{x:g}" for x in curve.x)
        times = " ".join(number(s * 1e3) for s in curve.seconds)
        straight, rest = f"{curve.r_squared:.4f}", f"{100 * curve.intercept:.0f} %"
        table.add_row(curve.title, sizes, times, straight, rest)
    return table


def render_rates(rates: Sequence[Rate]) -> Group:
    """Return the table of achieved rates."""
    table = _plain_table("Achieved rates")
    table.add_column("size")
    table.add_column("way")
    table.add_column("precision")
    for heading in ("ms", "ratio", "TFLOP/s", "of products", "GB/s", "of bandwidth"):
        table.add_column(heading, justify="right")
    for rate in rates:
        compute = number(rate.teraflops), _percent(rate.of_matrix)
        memory = number(rate.gigabytes), _percent(rate.of_bandwidth)
        taken = number(rate.seconds * 1e3), number(rate.ratio)
        table.add_row(short(rate.workload), rate.way, rate.precision, *taken, *compute, *memory)
    return Group(table, _notes(NOTES), "")


def render_orchestration(found: Sequence[Orchestration]) -> Group:
    """Return the table of the cost of orchestration."""
    (cost,) = found
    table = _plain_table("Orchestration of a run: Ray, ledger, MLflow, checkpoints")
    table.add_column("what")
    table.add_column("found", justify="right")
    table.add_row("bare step", f"{cost.bare_step * 1e3:.0f} ms")
    within = f"{cost.step.median:.3f} ({cost.step.low:.3f} to {cost.step.high:.3f})"
    table.add_row("step of the run within a block, relative to a bare step", within)
    table.add_row("charge and checkpoint of a block", f"{cost.block_cost * 1e3:.1f} ms")
    table.add_row("  spread over the steps of a block", _percent(cost.of_blocks))
    clock = cost.by_wall_clock()
    spread = f"({_percent(clock.low)} to {_percent(clock.high)})"
    table.add_row("overhead of a step, wall clock", f"{_percent(clock.median)} {spread}")
    if cost.others_cpu is not None:
        table.add_row("other processes of the run, fraction of one core", _percent(cost.others_cpu))
    overhead = {"wall": clock.median}
    if (cpu := cost.by_cpu_time()) is not None:
        table.add_row("overhead of a step, CPU time", _percent(cpu))
        overhead["CPU"] = cpu
    table.add_row("fixed cost of a run", f"{cost.fixed:.1f} s")
    for T in TOTALS:
        shares = ", ".join(f"{_percent(cost.share(g, T))} ({w})" for w, g in overhead.items())
        table.add_row(f"share of a run of {T} steps", shares)
    reached = ", ".join(f"{cost.steps_below(g) or 'never'} ({w})" for w, g in overhead.items())
    table.add_row(f"share below {_percent(MAX_SHARE)} from T =", reached)
    notes = [
        f"{SMALL.name}: B = {cost.batch} for a step of {STEP_SECONDS} s. {cost.steps} steps of a",
        "whole run and as many of a bare loop take turns, block by block.",
        f"Charge and checkpoint came every few steps; the default is every {cost.block} steps.",
        "Wall clock: the run's other processes had the cores beside its one worker. CPU time: cost",
        f"of a block plus their CPU time over {cost.cores} cores, which is the loss of a run that",
        "trains on all cores; it hardly depends on other load.",
    ]
    return Group(table, _notes(notes), "")


def _notes(notes: Sequence[str]) -> Group:
    return Group(*(Text(f"  {note}", style="dim") for note in notes))


def _percent(part: float) -> str:
    return f"{100 * part:.2f} %" if abs(part) < 0.1 else f"{100 * part:.0f} %"


def _plain_table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE, title_justify="left")


def short(workload: str) -> str:
    """Return a size's name without its number of parameters: 28x28, K=8."""
    pixels, _, views = workload.split(", ")
    return f"{pixels}, {views}"


def number(value: float) -> str:
    """Format a positive number with three significant digits, keeping all before the point."""
    if value >= 99.5:
        return f"{value:,.0f}"
    if value >= 9.95:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.995 else f"{value:.3g}"


def _ratio(ratio: Ratio) -> list[str]:
    return [number(ratio.median), f"{number(ratio.low)} to {number(ratio.high)}"]
