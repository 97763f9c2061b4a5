"""The line through a curve's points."""

import pytest

from benchmarks import curves


def test_a_line_is_found():
    curve = curves.Curve.of("records B", "records", (1, 2, 4), (0.3, 0.5, 0.9))
    assert curve.r_squared == pytest.approx(1)
    assert curve.intercept == pytest.approx(0.1 / 0.9)


def test_a_parabola_is_no_line():
    x = (1, 2, 4, 8)
    curve = curves.Curve.of("records B", "records", x, tuple(v**2 for v in x))
    assert curve.r_squared < 0.97


def test_a_point_is_the_least_of_its_rounds(monkeypatch):
    taken = {"1": [0.3, 9.0, 0.2], "2": [0.4, 0.5, 7.0]}
    monkeypatch.setattr(curves, "interleave", lambda cases, rounds: taken)
    curve = curves._curve("records B", "records", (1, 2), [list, list], 3)
    assert curve.seconds == (0.2, 0.4)
