"""What was measured, as one picture: ratios to the limit, peak memory, and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_BAR = "#4c72b0"
_LIMIT = "#c44e52"


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw the sections, peaks and curves of a report into a PNG file."""
    steps = [s for s in report["sections"] if s["title"].startswith("Clipped gradients")]
    rows = len(steps) + 1
    figure, axes = plt.subplots(rows, 2, figsize=(12, 3.2 * rows), layout="constrained")
    for (left, right), section in zip(axes, steps, strict=False):
        _ratios(left, section)
        _memory(right, section["title"], report["memory"])
    for axis, curve in zip([*axes[-1]], _pairs(report["curves"]), strict=True):
        _lines(axis, curve)
    figure.suptitle(f"{report['machine']['processor']}, {report['machine']['cores']} cores, CPU")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


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
    axis.set(title=section["title"], xlabel="time over the non-private step")


def _memory(axis: Axes, title: str, peaks: Sequence[Mapping[str, Any]]) -> None:
    here = [peak for peak in peaks if peak["workload"] in title]
    if not here:
        axis.set_axis_off()
        return
    names = [f"{p['way']} (n={p['records']}, by {p['micro_batch']})" for p in here]
    bars = axis.barh(names, [p["mib"] for p in here], color=_BAR)
    axis.bar_label(bars, [f"{p['mib']:.0f}" for p in here], padding=4, fontsize=8)
    axis.margins(x=0.15)
    axis.invert_yaxis()
    axis.set(title="peak memory of a step", xlabel="MiB above the process before it")


def _pairs(curves: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    return [c for c in curves if c["unit"] != "workers"], [
        c for c in curves if c["unit"] == "workers"
    ]


def _lines(axis: Axes, curves: Sequence[Mapping[str, Any]]) -> None:
    for curve in curves:
        x = [value / curve["x"][-1] for value in curve["x"]]
        y = [value / curve["seconds"][-1] for value in curve["seconds"]]
        label = f"{curve['title']} to {curve['x'][-1]:g}, R² = {curve['r_squared']:.3f}"
        axis.plot(x, y, marker="o", label=label)
    axis.set(
        title="growth of a step's time",
        xlabel="size over the largest",
        ylabel="time over the largest's",
    )
    axis.set_xlim(0)
    axis.set_ylim(0)
    axis.legend(fontsize=8)
