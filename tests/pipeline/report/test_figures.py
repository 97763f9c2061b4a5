"""The figures' geometry."""

import base64
import io
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.report import figures
from pipeline.report.facts import ReportFacts


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


def test_curve_maps_steps_and_epsilon_linearly(facts: ReportFacts) -> None:
    spending = replace(
        facts.spending,
        steps=(100, 200, 400),
        curve=(2.0, 4.0, 8.0),
        epsilon_rdp=8.0,
        epsilon_prv=7.0,
        epsilon_pld=6.9,
    )
    curve = figures.epsilon_curve(spending)
    assert curve is not None
    points = [tuple(map(float, p.split(","))) for p in curve.line[1:].split(" L")]
    assert points[0] == (40, 222)
    assert points[-1] == (382, 24) == curve.end
    assert points[2] == (211, 123)
    assert [level.text for level in curve.levels] == ["RDP 8.00", "PRV 7.00", "PLD 6.90"]
    labels = [level.label for level in curve.levels]
    assert all(b - a >= figures.LABEL_GAP for a, b in pairwise(labels))


def test_no_charges_no_curve(facts: ReportFacts) -> None:
    assert figures.epsilon_curve(replace(facts.spending, steps=(), curve=())) is None
    assert figures.epsilon_curve(replace(facts.spending, steps=(0,), curve=(0.0,))) is None
    infinite = replace(facts.spending, steps=(1,), curve=(math.inf,))
    assert figures.epsilon_curve(infinite) is None


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
