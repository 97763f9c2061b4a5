import math

import numpy as np
import pytest
from scipy import stats

from privacy.accounting import accountant
from privacy.audit.distinguish import epsilon_lower_bound
from privacy.errors import InvalidRequest
from privacy.mechanisms import Gaussian

DELTA = 1e-5


def gaussian_runs(rng, sigma, n):
    """A sum with and without one record of norm 1, which N(0, sigma^2) is added to."""
    return 1 + sigma * rng.standard_normal(n), sigma * rng.standard_normal(n)


def claim(sigma):
    return accountant("pld").epsilon([Gaussian(sigma)], DELTA)


def response_runs(rng, epsilon, n, answers=2):
    """Randomised response: the truth with probability e^eps / (e^eps + answers - 1)."""
    keep = math.exp(epsilon) / (math.exp(epsilon) + answers - 1)

    def respond(truth):
        others = (truth + rng.integers(1, answers, n)) % answers
        return np.where(rng.random(n) < keep, truth, others).astype(float)

    return respond(1), respond(0)


def test_is_below_the_truth_as_often_as_stated():
    """Randomised response, whose exact ε is reached by the best threshold: no slack to hide in."""
    rng, confidence, audits, epsilon = np.random.default_rng(0), 0.8, 400, 1.0
    above = sum(
        epsilon_lower_bound(*response_runs(rng, epsilon, 200), 0.0, confidence).epsilon > epsilon
        for _ in range(audits)
    )
    assert stats.binomtest(above, audits, 1 - confidence, alternative="greater").pvalue > 1e-4
    assert above > 0  # or the bound would be so loose that it says nothing


def test_comes_near_the_truth():
    rng = np.random.default_rng(1)
    bound = epsilon_lower_bound(*response_runs(rng, 2.0, 40_000), 0.0, 0.95)
    assert 1.85 < bound.epsilon <= 2.0


@pytest.mark.parametrize("sigma", [0.7, 1.0, 4.0])
def test_the_gaussian_mechanism_keeps_its_claim(sigma):
    rng = np.random.default_rng(2)
    for _ in range(20):
        bound = epsilon_lower_bound(*gaussian_runs(rng, sigma, 2000), DELTA, 0.999)
        assert bound.epsilon <= claim(sigma)
    assert sigma > 1 or bound.epsilon > 0.5


@pytest.mark.parametrize("sigma", [2.0, 3.0])
def test_a_third_of_the_noise_is_found_out(sigma):
    rng = np.random.default_rng(3)
    for _ in range(5):
        bound = epsilon_lower_bound(*gaussian_runs(rng, sigma / 3, 20_000), DELTA, 0.95)
        assert bound.epsilon > claim(sigma)


def test_missing_noise_gives_all_that_could_be_shown():
    found = epsilon_lower_bound(np.ones(2000), np.zeros(2000), DELTA, 0.95)
    # Of 1000 runs that decide none was confused: both bounds are 0.025^(1/1000) away.
    edge = 0.025 ** (1 / 1000)
    assert found.epsilon == found.detectable == pytest.approx(math.log((edge - DELTA) / (1 - edge)))
    assert (found.confidence, found.trials) == (0.95, 2000)


def test_every_direction_and_either_numerator_is_tried():
    """Only a thirtieth of the runs give anything away, on one side, in one of the two worlds."""
    rng = np.random.default_rng(4)
    plain = rng.random(4000)
    rare = np.where(rng.random(4000) < 0.03, 2.0, rng.random(4000))
    for worlds in ((rare, plain), (plain, rare), (-rare, -plain), (-plain, -rare)):
        assert epsilon_lower_bound(*worlds, DELTA, 0.95).epsilon > 1.5


def test_delta_is_allowed_for():
    """A mechanism that names its record with probability δ and else says nothing is (0, δ)-DP."""
    rng, delta = np.random.default_rng(5), 0.05
    present, absent = (rng.random(20_000) < delta).astype(float), np.zeros(20_000)
    assert epsilon_lower_bound(present, absent, 0.0, 0.95).epsilon > 4
    assert epsilon_lower_bound(present, absent, delta, 0.95).epsilon < 4
    assert epsilon_lower_bound(present, absent, 2 * delta, 0.95).epsilon == 0


def test_choosing_the_threshold_proves_nothing_by_itself():
    """Scores of equal law: the best of many thresholds is judged on runs that it has not seen."""
    rng = np.random.default_rng(6)
    above = sum(
        epsilon_lower_bound(rng.random(500), rng.random(500), 0.0, 0.9).epsilon > 0
        for _ in range(200)
    )
    assert stats.binomtest(above, 200, 0.1, alternative="greater").pvalue > 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"present": np.zeros(3)},
        {"present": np.zeros(1), "absent": np.zeros(1)},
        {"present": np.array([0, 1, math.nan, 3])},
        {"absent": np.array([0, 1, math.inf, 3])},
        {"absent": np.zeros((4, 1))},
        {"delta": -1e-9},
        {"delta": 1.0},
        {"delta": math.nan},
        {"confidence": 0.0},
        {"confidence": 1.0},
        {"confidence": math.nan},
    ],
)
def test_bad_requests(change):
    values = {"present": np.zeros(4), "absent": np.zeros(4), "delta": DELTA, "confidence": 0.9}
    with pytest.raises(InvalidRequest):
        epsilon_lower_bound(**values | change)
