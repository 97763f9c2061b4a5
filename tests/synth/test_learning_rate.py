import itertools
import math

import pytest

from synth.learning_rate import cosine


def test_half_a_cosine_from_the_peak_to_zero():
    assert cosine(3e-4, 0, 100) == 3e-4
    assert cosine(3e-4, 25, 100) == pytest.approx(3e-4 * (1 + math.sqrt(0.5)) / 2)
    assert cosine(3e-4, 50, 100) == pytest.approx(1.5e-4)
    assert cosine(3e-4, 100, 100) == pytest.approx(0, abs=1e-19)


def test_falls_all_the_way_and_never_rises_again():
    rates = [cosine(1.0, step, 40) for step in range(60)]
    assert all(after < before for before, after in itertools.pairwise(rates[:41]))
    assert rates[40:] == [rates[40]] * 20
