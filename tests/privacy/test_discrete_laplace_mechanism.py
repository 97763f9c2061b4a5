"""What a step costs: no query of its sensitivity loses more than randomised response."""

import itertools
import math

import numpy as np
import pytest

from privacy.mechanisms import DiscreteLaplace


def hockey_stick(shift: tuple[int, ...], scale: float, epsilon: float) -> float:
    """sum of (P - e^epsilon Q)+ over all outputs, Q moved by `shift`, noise of `scale`."""
    reach = math.ceil(40 * scale)
    k = np.arange(-reach, reach + 1)
    a = math.exp(-1 / scale)

    def mass(moved: int) -> np.ndarray:
        return (1 - a) / (1 + a) * a ** np.abs(k - moved)

    p = q = np.ones(1)
    for d in shift:
        p = np.multiply.outer(p, mass(0))
        q = np.multiply.outer(q, mass(d))
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())


def randomised_response(step_epsilon: float, epsilon: float) -> float:
    p = 1 / (1 + math.exp(-step_epsilon))
    return max(p - math.exp(epsilon) * (1 - p), 0) + max((1 - p) - math.exp(epsilon) * p, 0)


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("fraction", [-1.5, -0.5, 0.0, 0.3, 0.9, 0.999])
def test_one_count_is_randomised_response(noise, fraction):
    step = DiscreteLaplace(noise).step_epsilon
    found = hockey_stick((1,), noise, fraction * step)
    assert found == pytest.approx(randomised_response(step, fraction * step), abs=1e-12)


@pytest.mark.parametrize("shift", [(2,), (3,), (1, 1), (1, -1), (2, 0), (2, -1)])
@pytest.mark.parametrize("noise", [0.5, 1.5])
def test_any_query_of_the_sensitivity_loses_no_more(shift, noise):
    sensitivity = sum(map(abs, shift))
    step = DiscreteLaplace(noise).step_epsilon
    for fraction in (-1.2, -0.5, 0.0, 0.2, 0.5, 0.8, 0.95, 1.0):
        found = hockey_stick(shift, noise * sensitivity, fraction * step)
        assert found <= randomised_response(step, fraction * step) + 1e-12


def test_the_loss_never_exceeds_one_over_the_noise():
    for shift in itertools.product(range(-2, 3), repeat=2):
        if any(shift):
            scale = 1.7 * sum(map(abs, shift))
            assert hockey_stick(shift, scale, DiscreteLaplace(1.7).step_epsilon) < 1e-12
    assert hockey_stick((2,), 1.7, DiscreteLaplace(1.7).step_epsilon) > 0.1  # noise for 1, not 2
