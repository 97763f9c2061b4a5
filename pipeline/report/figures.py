"""Figures and numbers of the report: coordinates that the templates draw as SVG, formatted text.

SVG follows the page's colours in light and dark, prints sharp, and can be read by a screen reader;
a bitmap could not.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import NamedTuple

import numpy as np
from PIL import Image

from privacy.accounting import EpsilonBounds
from privacy.accounting.tradeoff import TradeOff

STRIP_COLUMNS = 12
CURVE_WIDTH, CURVE_HEIGHT = 480, 262
CURVE_LEFT, CURVE_RIGHT, CURVE_TOP, CURVE_BOTTOM = 40, 98, 24, 40
LABEL_GAP = 17.0
CELL = 28
LABELLED_CELLS = 20
# The least false-positive rate that is drawn.
_LEAST_RATE = 1e-4


class Tick(NamedTuple):
    """A mark on an axis."""

    at: float
    text: str


class Level(NamedTuple):
    """A figure of one accountant at the end of the curve."""

    name: str
    at: float
    #: Height of its text, which is moved apart from the others.
    label: float
    text: str


class EpsilonCurve(NamedTuple):
    """The cumulative ε over charged steps, in the pixels of its view box."""

    line: str
    area: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    end: tuple[float, float]
    levels: tuple[Level, ...]


class PowerLine(NamedTuple):
    """The power of attacks on a record, or on a unit of several, over false-positive rates."""

    name: str
    path: str
    end: tuple[float, float]
    #: Height of its text, which is moved apart from the others.
    label: float


class PowerCurve(NamedTuple):
    """Power over the false-positive rate, which is drawn by its logarithm."""

    lines: tuple[PowerLine, ...]
    chance: str  # power equal to the rate
    points: tuple[tuple[float, float], ...]  # at the rates that are stated
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix."""

    x: float
    y: float
    count: int
    #: Of the images of its row, in [0, 1].
    share: float
    truth: str
    taken_for: str


class ConfusionMap(NamedTuple):
    """A heat map: cells and, when they fit, counts in them."""

    cells: tuple[Cell, ...]
    names: tuple[Tick, ...]
    edge: float
    margin: float
    labelled: bool


def strip(images: np.ndarray) -> str:
    """Return images uint8 [N, H, W, C] as a PNG data URI, twelve a row, N ≥ 1, unscaled."""
    count, height, width, channels = images.shape
    gap = max(1, width // 14)
    columns = min(count, STRIP_COLUMNS)
    rows = math.ceil(count / columns)
    # The further channel is opacity: between the images the page shows through.
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels + 1)
    sheet = np.zeros(shape, dtype=np.uint8)
    for index, image in enumerate(images):
        y, x = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[y : y + height, x : x + width, :channels] = image
        sheet[y : y + height, x : x + width, channels] = 255
    stream = io.BytesIO()
    Image.fromarray(sheet, "LA" if channels == 1 else "RGBA").save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def share(part: float, whole: float) -> float:
    """Return `part / whole` within [0, 1], for the length of a bar."""
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def nice_ticks(largest: float, about: int = 5) -> tuple[float, ...]:
    """Return round numbers from 0 to at least `largest`, 1, 2 or 5 times a power of ten apart."""
    if not 0 < largest < math.inf:
        return (0.0, 1.0)
    raw = largest / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return tuple(step * index for index in range(math.ceil(largest / step - 1e-9) + 1))


def epsilon_curve(
    charges: Sequence[tuple[int, float]], bounds: EpsilonBounds
) -> EpsilonCurve | None:
    """Return the curve of charges (charged steps, ε by RDP), ascending; None if uncharged.

    `bounds`, every accountant's ε of all charges, stand at its end.
    """
    if not charges or charges[-1][0] == 0 or not all(math.isfinite(e) for _, e in charges):
        return None
    last = charges[-1][0]
    shown = {n.upper(): value for n, value in bounds.stated().items() if math.isfinite(value)}
    x_values = nice_ticks(last, 4)
    y_values = nice_ticks(max([*(value for _, value in charges), *shown.values()]))
    right, bottom = CURVE_WIDTH - CURVE_RIGHT, CURVE_HEIGHT - CURVE_BOTTOM

    def x(step: float) -> float:
        # The axis ends with the run, not with a round number: the labels stand right behind it.
        return round(CURVE_LEFT + (right - CURVE_LEFT) * step / last, 2)

    def y(value: float) -> float:
        return round(bottom - (bottom - CURVE_TOP) * value / y_values[-1], 2)

    points = [(x(step), y(value)) for step, value in charges]
    line = "M" + " L".join(f"{px:g},{py:g}" for px, py in points)
    return EpsilonCurve(
        line=line,
        area=f"{line} L{points[-1][0]:g},{bottom:g} L{points[0][0]:g},{bottom:g} Z",
        x_ticks=tuple(Tick(x(value), f"{value:,.0f}") for value in x_values if value <= last),
        y_ticks=tuple(Tick(y(value), f"{value:g}") for value in y_values),
        end=points[-1],
        levels=_levels({name: (y(value), value) for name, value in shown.items()}),
    )


def power_curve(attack: Sequence[TradeOff]) -> PowerCurve | None:
    """Return the trade-off curves of one composition, None where there are none."""
    if not attack:
        return None
    right, bottom = CURVE_WIDTH - CURVE_RIGHT, CURVE_HEIGHT - CURVE_BOTTOM
    rates = np.geomspace(_LEAST_RATE, 1.0, 121)

    def at(rate: float, power: float) -> tuple[float, float]:
        along = 1 - math.log(rate) / math.log(_LEAST_RATE)
        x, y = CURVE_LEFT + (right - CURVE_LEFT) * along, bottom - (bottom - CURVE_TOP) * power
        return round(x, 2), round(y, 2)

    def path(powers: np.ndarray) -> str:
        points = (at(*pair) for pair in zip(rates.tolist(), powers.tolist(), strict=True))
        return "M" + " L".join(f"{x:g},{y:g}" for x, y in points)

    lines = tuple(
        PowerLine(
            "one record" if curve.records == 1 else f"{curve.records} records",
            path(curve.at(rates)),
            at(1.0, 1.0),
            at(1.0, 1.0)[1] + LABEL_GAP * place,
        )
        for place, curve in enumerate(attack)
    )
    stated = [at(float(rate), power) for curve in attack for rate, power in curve.power.items()]
    x_ticks = (Tick(at(rate, 0)[0], f"{100 * rate:g} %") for rate in (1e-4, 1e-3, 0.01, 0.1, 1.0))
    y_ticks = (Tick(at(1.0, power)[1], f"{100 * power:g} %") for power in (0, 0.25, 0.5, 0.75, 1))
    return PowerCurve(lines, path(rates), tuple(stated), tuple(x_ticks), tuple(y_ticks))


def _levels(figures: dict[str, tuple[float, float]]) -> tuple[Level, ...]:
    """Return labels from top to bottom, each at least a line below the one before."""
    levels: list[Level] = []
    for name, (at, value) in sorted(figures.items(), key=lambda item: item[1][0]):
        label = max(at, levels[-1].label + LABEL_GAP) if levels else at
        levels.append(Level(name, at, label, f"{name} {epsilon(value)}"))
    return tuple(levels)


def confusion_map(confusion: np.ndarray, names: Sequence[str]) -> ConfusionMap:
    """Return a heat map of `confusion` [classes, classes]; rows are true classes."""
    confusion = np.asarray(confusion)
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


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def epsilon(value: float, digits: int = 2) -> str:
    """Format an ε, rounded up to `digits` decimals."""
    # A printed bound must not be smaller than the bound.
    if not math.isfinite(value):
        return "∞"
    # Decimal from the shortest text of the float: exact, and 1.1 does not become 1.11.
    rounded = Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), ROUND_CEILING)
    if value > 0 and rounded <= Decimal(1).scaleb(-digits) and digits < 6:
        return epsilon(value, digits + 2)
    return f"{rounded:f}"


def left(value: float) -> str:
    """Format what is left of a budget, rounded down."""
    # A page must not offer more than there is.
    if not math.isfinite(value):
        return "∞"
    return f"{Decimal(repr(float(value))).quantize(Decimal('0.01'), ROUND_FLOOR):f}"


def power(value: float) -> str:
    """Format a small number such as δ as `10⁻⁵` or `1.5 × 10⁻⁵`, rounded up to three digits."""
    if value == 0 or not math.isfinite(value) or value >= 0.01:
        return f"{value:.3g}"
    exact = Decimal(repr(float(value)))
    exponent = exact.adjusted()
    mantissa = exact.scaleb(-exponent).quantize(Decimal("0.01"), ROUND_CEILING)
    if mantissa >= 10:
        mantissa, exponent = Decimal(1), exponent + 1
    ten = "10" + str(exponent).translate(_SUPERSCRIPT)
    return ten if mantissa == 1 else f"{float(mantissa):g} × {ten}"


def percent(fraction: float, digits: int = 1) -> str:
    """Format a fraction in [0, 1] as per cent, with a narrow space."""
    return f"{100 * fraction:.{digits}f}\u202f%"


def number(value: float | int | str) -> str:
    """Format a count with separators, other numbers with up to six digits, text as it is."""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}"
