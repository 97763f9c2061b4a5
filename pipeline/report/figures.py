"""Geometry of the figures: pure numbers in, coordinates out; the template draws them as SVG.

SVG that the page draws itself follows its colours in light and dark, prints sharp, and can be read
by a screen reader; a bitmap could not.
"""

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.report.facts import Spending
from pipeline.report.text import epsilon

STRIP_COLUMNS = 12
CURVE_WIDTH, CURVE_HEIGHT = 480, 262
CURVE_LEFT, CURVE_RIGHT, CURVE_TOP, CURVE_BOTTOM = 40, 98, 24, 40
LABEL_GAP = 17.0
CELL = 28
LABELLED_CELLS = 20


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Level:
    """A figure of one accountant at the end of the curve; `label` is moved apart from others."""

    name: str
    at: float
    label: float
    text: str


@dataclass(frozen=True)
class EpsilonCurve:
    """The cumulative ε over charged steps, in the pixels of its view box."""

    line: str
    area: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    end: tuple[float, float]
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix: where, how many, and which share of its row."""

    x: float
    y: float
    count: int
    share: float
    truth: str
    taken_for: str


@dataclass(frozen=True)
class ConfusionMap:
    """A heat map: cells and, when they fit, counts in them."""

    cells: tuple[Cell, ...]
    names: tuple[Tick, ...]
    edge: float
    margin: float
    labelled: bool


def strip(images: np.ndarray) -> str:
    """A PNG data URI of up to twelve images a row on a transparent ground, unscaled.

    Args:
        images: uint8 [N, H, W, C], N ≥ 1.
    """
    count, height, width, channels = images.shape
    gap = max(1, width // 14)
    columns = min(count, STRIP_COLUMNS)
    rows = math.ceil(count / columns)
    sheet = np.zeros(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels + 1), dtype=np.uint8
    )
    for index, image in enumerate(images):
        y, x = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[y : y + height, x : x + width, :channels] = image
        sheet[y : y + height, x : x + width, channels] = 255
    stream = io.BytesIO()
    Image.fromarray(sheet, "LA" if channels == 1 else "RGBA").save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def share(part: float, whole: float) -> float:
    """`part / whole` within [0, 1], for the length of a bar."""
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def nice_ticks(largest: float, about: int = 5) -> tuple[float, ...]:
    """Round numbers from 0 to at least `largest`, in steps of 1, 2 or 5 times a power of ten."""
    if not 0 < largest < math.inf:
        return (0.0, 1.0)
    raw = largest / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return tuple(step * index for index in range(math.ceil(largest / step - 1e-9) + 1))


def epsilon_curve(spending: Spending) -> EpsilonCurve | None:
    """The curve of a run's charges with each accountant's figure at its end; None if uncharged."""
    finite = all(math.isfinite(value) for value in spending.curve)
    if not finite or not spending.steps or spending.steps[-1] == 0:
        return None
    figures = {
        "RDP": spending.epsilon_rdp,
        "PRV": spending.epsilon_prv,
        "PLD": spending.epsilon_pld,
    }
    shown = {
        name: value for name, value in figures.items() if value is not None and math.isfinite(value)
    }
    x_values = nice_ticks(spending.steps[-1], 4)
    y_values = nice_ticks(max([*spending.curve, *shown.values()]))
    right, bottom = CURVE_WIDTH - CURVE_RIGHT, CURVE_HEIGHT - CURVE_BOTTOM

    def x(step: float) -> float:
        # The axis ends with the run, not with a round number: the labels stand right behind it.
        return round(CURVE_LEFT + (right - CURVE_LEFT) * step / spending.steps[-1], 2)

    def y(value: float) -> float:
        return round(bottom - (bottom - CURVE_TOP) * value / y_values[-1], 2)

    points = [
        (x(step), y(value)) for step, value in zip(spending.steps, spending.curve, strict=True)
    ]
    if spending.steps[0] > 0:
        points.insert(0, (x(0), y(0)))
    line = "M" + " L".join(f"{px:g},{py:g}" for px, py in points)
    return EpsilonCurve(
        line=line,
        area=f"{line} L{points[-1][0]:g},{bottom:g} L{points[0][0]:g},{bottom:g} Z",
        x_ticks=tuple(
            Tick(x(value), f"{value:,.0f}") for value in x_values if value <= spending.steps[-1]
        ),
        y_ticks=tuple(Tick(y(value), f"{value:g}") for value in y_values),
        end=points[-1],
        levels=_levels({name: (y(value), value) for name, value in shown.items()}),
    )


def _levels(figures: dict[str, tuple[float, float]]) -> tuple[Level, ...]:
    """Labels from top to bottom, each at least a line below the one before."""
    levels: list[Level] = []
    for name, (at, value) in sorted(figures.items(), key=lambda item: item[1][0]):
        label = max(at, levels[-1].label + LABEL_GAP) if levels else at
        levels.append(Level(name, at, label, f"{name} {epsilon(value)}"))
    return tuple(levels)


def confusion_map(confusion: np.ndarray, names: tuple[str, ...]) -> ConfusionMap:
    """A heat map of `confusion` [classes, classes]: rows are the truth, shares are by row."""
    totals = confusion.sum(axis=1)
    classes = len(names)
    longest = max(len(_short(name)) for name in names)
    margin = 30 + 7.0 * longest
    cells = tuple(
        Cell(
            x=margin + column * CELL,
            y=margin + row * CELL,
            count=int(confusion[row, column]),
            share=float(confusion[row, column] / totals[row]) if totals[row] else 0.0,
            truth=names[row],
            taken_for=names[column],
        )
        for row in range(classes)
        for column in range(classes)
    )
    ticks = tuple(Tick(margin + (i + 0.5) * CELL, _short(name)) for i, name in enumerate(names))
    return ConfusionMap(
        cells, ticks, margin + classes * CELL + 2, margin, classes <= LABELLED_CELLS
    )


def _short(name: str) -> str:
    return name if len(name) <= 12 else name[:11] + "…"
