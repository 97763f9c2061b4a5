"""The figures' geometry."""

import base64
import io
import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.report import figures
from pipeline.report.figures import (
    epsilon,
    left,
    number,
    percent,
    power,
)
from privacy.accounting import EpsilonBounds
from privacy.accounting.tradeoff import trade_off
from privacy.mechanisms import Gaussian


def _decoded(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 7, 12, 29])
def test_strip_holds_every_pixel_in_order(channels: int, count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 20, channels), dtype=np.uint8)
    sheet = _decoded(figures.strip(images))
    columns = min(count, 12)
    assert sheet.shape[1] == columns * 21 - 1
    opaque = 0
    for index, image in enumerate(images):
        y, x = index // columns * 29, index % columns * 21
        tile = sheet[y : y + 28, x : x + 20]
        assert np.array_equal(tile[..., :channels], image)
        assert (tile[..., channels] == 255).all()
        opaque += tile[..., channels].size
    assert (sheet[..., channels] == 255).sum() == opaque


@given(st.floats(min_value=1e-3, max_value=1e7))
def test_ticks_are_round_and_cover(largest: float) -> None:
    ticks = figures.nice_ticks(largest)
    assert ticks[0] == 0
    assert ticks[-1] >= largest * (1 - 1e-9)
    assert 2 <= len(ticks) <= 7
    mantissa = ticks[1] / 10 ** math.floor(math.log10(ticks[1]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6


@pytest.mark.parametrize("largest", [0.0, -1.0, math.inf, math.nan])
def test_ticks_of_nothing(largest: float) -> None:
    assert figures.nice_ticks(largest) == (0.0, 1.0)


def test_the_curve_maps_steps_and_epsilon_linearly() -> None:
    charges = ((0, 0.0), (100, 2.0), (200, 4.0), (400, 8.0))
    curve = figures.epsilon_curve(charges, EpsilonBounds(8.0, 7.0, 6.9))
    assert curve is not None
    points = [tuple(map(float, p.split(","))) for p in curve.line[1:].split(" L")]
    assert points[0] == (40, 222)
    assert points[-1] == (382, 24) == curve.end
    assert points[2] == (211, 123)
    assert [level.text for level in curve.levels] == ["RDP 8.00", "PRV 7.00", "PLD 6.90"]
    labels = [level.label for level in curve.levels]
    assert all(b - a >= figures.LABEL_GAP for a, b in pairwise(labels))


@pytest.mark.parametrize("charges", [(), ((0, 0.0),), ((0, 0.0), (1, math.inf))])
def test_there_is_no_curve_without_charges(charges: tuple[tuple[int, float], ...]) -> None:
    assert figures.epsilon_curve(charges, EpsilonBounds(1.0)) is None


def test_confusion_map_shares_are_by_row() -> None:
    drawn = figures.confusion_map(np.array([[3, 1], [0, 0]]), ("cat", "dog"))
    cells = {(cell.truth, cell.taken_for): (cell.count, cell.share) for cell in drawn.cells}
    assert cells == {
        ("cat", "cat"): (3, 0.75),
        ("cat", "dog"): (1, 0.25),
        ("dog", "cat"): (0, 0.0),
        ("dog", "dog"): (0, 0.0),
    }
    by_place = {(cell.x, cell.y): cell.taken_for for cell in drawn.cells if cell.truth == "cat"}
    assert [by_place[key] for key in sorted(by_place)] == ["cat", "dog"]


def test_confusion_of_many_classes_has_no_counts() -> None:
    names = tuple(str(index) for index in range(21))
    assert not figures.confusion_map(np.eye(21, dtype=int), names).labelled


@pytest.mark.parametrize(
    ("part", "whole", "share"), [(1, 4, 0.25), (9, 4, 1), (-1, 4, 0), (1, 0, 0), (math.inf, 4, 1)]
)
def test_share(part: float, whole: float, share: float) -> None:
    assert figures.share(part, whole) == share


@given(st.floats(min_value=1e-5, max_value=1e6), st.integers(1, 6))
def test_epsilon_is_never_rounded_down(value: float, digits: int) -> None:
    shown = Fraction(epsilon(value, digits))
    assert shown >= Fraction(repr(value))
    assert shown - Fraction(repr(value)) < Fraction(1, 10**digits)


@given(st.floats(min_value=0, max_value=1e6))
def test_what_is_left_is_never_rounded_up(value: float) -> None:
    assert Fraction(repr(value)) - Fraction(1, 100) < Fraction(left(value)) <= Fraction(repr(value))


@pytest.mark.parametrize(
    ("value", "text"),
    [(9.9959, "10.00"), (1.1, "1.10"), (10.0, "10.00"), (0.0, "0.00"), (0.0031, "0.0031")],
)
def test_epsilon(value: float, text: str) -> None:
    assert epsilon(value) == text


def test_infinite_epsilon() -> None:
    assert epsilon(math.inf) == "∞"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "10⁻⁵"),
        (1.5e-6, "1.5 × 10⁻⁶"),
        (1.2341e-4, "1.24 × 10⁻⁴"),
        (9.999e-4, "10⁻³"),
        (0.25, "0.25"),
        (0.0, "0"),
    ],
)
def test_power(value: float, text: str) -> None:
    assert power(value) == text


def test_number_and_percent() -> None:
    assert number(60000) == "60,000"
    assert number(1 / 15) == "0.0666667"
    assert number("zero-out") == "zero-out"
    assert percent(0.9416) == "94.2\u202f%"
    assert percent(1.0) == "100.0\u202f%"


def test_the_power_curve_rises_above_chance_and_holds_the_stated_points() -> None:
    attack = [trade_off([Gaussian(2.0)], 1e-5), trade_off([Gaussian(2.0)], 1e-5, 3)]
    drawn = figures.power_curve(attack)
    assert drawn is not None
    assert [line.name for line in drawn.lines] == ["one record", "3 records"]
    assert drawn.lines[1].label - drawn.lines[0].label == figures.LABEL_GAP
    paths = [
        np.array([pair.split(",") for pair in path[1:].split(" L")], float)
        for path in (drawn.chance, drawn.lines[0].path, drawn.lines[1].path)
    ]
    for lower, upper in pairwise(paths):
        assert np.array_equal(lower[:, 0], upper[:, 0])
        assert np.all(upper[:, 1] <= lower[:, 1]) and np.all(np.diff(upper[:, 1]) <= 0)
    # Height falls from 222 at no power to 24 at all; a rate of 1 % lies in the middle.
    assert drawn.points[1] == pytest.approx(
        (40 + (382 - 40) / 2, 222 - 198 * attack[0].power["0.01"]), abs=0.01
    )
    assert [tick.text for tick in drawn.x_ticks] == ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"]
    assert figures.power_curve([]) is None
