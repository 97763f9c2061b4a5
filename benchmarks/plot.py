"""The report as one picture, with a panel for each result."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from .orchestration import MAX_SHARE
from .table import short

_BAR = "#4c72b0"
_LIMIT = "#c44e52"
_LABELS = {"of_matrix": "of the matrix rate", "of_bandwidth": "of the bandwidth"}


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw a report into a PNG file: sections, rates, memory, runs and curves."""
    panels = list(_panels(report))
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(
        rows, 2, figsize=(13, 3.4 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        panel(axis)
        axis.title.set_fontsize(9)
    machine = report["machine"]
    figure.suptitle(
        f"{machine['processor']}, {machine['cores']} cores, {machine['device']}; "
        f"load {machine['load before']} before, {report['load after']} after"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _panels(report: Mapping[str, Any]) -> Iterator[Callable[[Axes], None]]:
    """Yield the function that draws each panel, in order."""
    yield from (partial(_ratios, section=section) for section in report["sections"])
    if report["rates"]:
        yield partial(_rates, rates=report["rates"])
    sizes = dict.fromkeys(peak["workload"] for peak in report["memory"])
    for size in sizes:
        yield partial(_memory, title=size, peaks=report["memory"])
    for cost in report["orchestration"]:
        yield partial(_runs, cost=cost)
    if report["curves"]:
        yield partial(_lines, curves=report["curves"])


def _ratios(axis: Axes, section: Mapping[str, Any]) -> None:
    rows = section["rows"]
    names = [row["case"] for row in rows]
    medians = [row["ratio"]["median"] for row in rows]
    low = [m - row["ratio"]["low"] for m, row in zip(medians, rows, strict=True)]
    high = [row["ratio"]["high"] - m for m, row in zip(medians, rows, strict=True)]
    bars = axis.barh(names, medians, xerr=[low, high], color=_BAR, ecolor="#777777")
    axis.bar_label(bars, [f"{m:.2f}" for m in medians], padding=4, fontsize=8)
    axis.axvline(1.0, color=_LIMIT, linewidth=1)
    axis.margins(x=0.15)
    axis.invert_yaxis()
    axis.set(title=section["title"], xlabel=f"time relative to: {section['base']}")


def _rates(axis: Axes, rates: Sequence[Mapping[str, Any]]) -> None:
    names = [f"{short(r['workload'])}: {r['way']}, {r['precision']}" for r in rates]
    places = range(len(rates))
    for shift, part, color in ((-0.2, "of_matrix", _BAR), (0.2, "of_bandwidth", _LIMIT)):
        values = [100 * rate[part] for rate in rates]
        axis.barh([p + shift for p in places], values, 0.4, color=color, label=_LABELS[part])
    axis.set_yticks(places, names, fontsize=6)
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    axis.set(title="achieved rates, relative to the device's own", xlabel="%")


def _memory(axis: Axes, title: str, peaks: Sequence[Mapping[str, Any]]) -> None:
    here = [peak for peak in peaks if peak["workload"] == title]
    names = [f"{p['way']} (n={p['records']}, by {p['micro_batch']})" for p in here]
    bars = axis.barh(names, [p["mib"] for p in here], color=_BAR)
    axis.bar_label(bars, [f"{p['mib']:.0f}" for p in here], padding=4, fontsize=8)
    axis.margins(x=0.15)
    axis.invert_yaxis()
    axis.set(title=f"peak memory, {title}", xlabel="MiB above the process before the step")


def _runs(axis: Axes, cost: Mapping[str, Any]) -> None:
    for way, shares in cost["shares"].items():
        steps = [int(T) for T in shares]
        axis.plot(steps, [100 * share for share in shares.values()], marker="o", label=way)
    axis.set_xscale("log")
    totals = [int(T) for T in cost["shares"]["wall"]]
    axis.set_xticks(totals, [str(T) for T in totals])
    axis.minorticks_off()
    axis.axhline(100 * MAX_SHARE, color=_LIMIT, linewidth=1)
    axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    axis.legend(fontsize=8, title="overhead of a step, by")
    axis.set(
        title=f"orchestration of a run, {cost['fixed']:.0f} s fixed",
        xlabel="steps T of the run",
        ylabel="% of the run",
    )


def _lines(axis: Axes, curves: Sequence[Mapping[str, Any]]) -> None:
    for curve in curves:
        x = [value / curve["x"][-1] for value in curve["x"]]
        y = [value / curve["seconds"][-1] for value in curve["seconds"]]
        label = f"{curve['title']} to {curve['x'][-1]:g}, R² = {curve['r_squared']:.3f}"
        axis.plot(x, y, marker="o", label=label)
    axis.set(
        title="growth of a step's time",
        xlabel="size relative to the largest",
        ylabel="time relative to the largest",
    )
    axis.set_xlim(0)
    axis.set_ylim(0)
    axis.legend(fontsize=8, loc="lower right")
