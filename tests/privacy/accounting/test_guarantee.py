"""Guarantees for groups and for replacement, against integrals, closed forms and each other."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from privacy.accounting import accountant
from privacy.accounting.base import round_up
from privacy.accounting.guarantee import _converted, group, replace_one
from privacy.accounting.rdp import curve, epsilon_of
from privacy.errors import InvalidRequest
from privacy.mechanisms import DiscreteLaplace, Gaussian, SubsampledGaussian

DELTA = 1e-5
MNIST = SubsampledGaussian(1 / 15, 18.28125, 4500)  # the paper's epsilon = 1
MIXED = [SubsampledGaussian(0.05, 4.0, 200), Gaussian(20.0), DiscreteLaplace(25.0, 2)]

Mixture = list[tuple[float, float]]
"""Weights and means of Gaussians with one standard deviation, on a line."""


def taken(q: float, k: int) -> Mixture:
    """What a group of k records adds to a Poisson sample, in clip norms."""
    return [(float(binom.pmf(j, k, q)), float(j)) for j in range(k + 1)]


def hockey_stick(p: Mixture, q: Mixture, sigma: float, epsilon: float) -> mpmath.mpf:
    """Integral of (P - e^epsilon Q)+ in thirty digits; log P/Q has to grow or fall with x."""
    with mpmath.workdps(30):

        def density(mixture: Mixture, x: mpmath.mpf) -> mpmath.mpf:
            return mpmath.fsum(w * mpmath.npdf(x, m, sigma) for w, m in mixture)

        def excess(x: mpmath.mpf) -> mpmath.mpf:
            return density(p, x) - mpmath.exp(epsilon) * density(q, x)

        ends = [mpmath.mpf(-40 * sigma), mpmath.mpf(40 * sigma + 10)]
        signs = [excess(end) > 0 for end in ends]
        if signs[0] == signs[1]:
            return mpmath.mpf(0) if not signs[0] else 1 - mpmath.exp(epsilon)
        low, high = ends
        for _ in range(120):
            middle = (low + high) / 2
            low, high = (low, middle) if (excess(middle) > 0) == signs[1] else (middle, high)
        if signs[1]:
            return mpmath.quad(excess, [low, low + 3 * sigma, low + 10 * sigma, ends[1]])
        return mpmath.quad(excess, [ends[0], low - 10 * sigma, low - 3 * sigma, low])


def check_one_step(found: float, pairs: list[tuple[Mixture, Mixture]], sigma: float) -> None:
    """`found` keeps DELTA, and one per cent less of it does not."""
    assert max(hockey_stick(p, q, sigma, found) for p, q in pairs) <= DELTA
    assert max(hockey_stick(p, q, sigma, 0.99 * found - 2e-4) for p, q in pairs) > DELTA


@pytest.mark.parametrize("plan", [[MNIST], MIXED, [Gaussian(3.0)], [DiscreteLaplace(2.0, 3)]])
def test_one_record_is_the_accountants_guarantee(plan):
    found = group(plan, DELTA, 1)
    assert found.epsilon == round_up(accountant("pld").epsilon(plan, DELTA))
    assert (found.records, found.delta, found.method) == (1, DELTA, "PLD")
    assert found.relation == "add or remove one record"


@pytest.mark.parametrize(("sigma", "steps", "k"), [(5.0, 1, 2), (30.0, 4, 7), (200.0, 1, 100)])
def test_a_group_under_plain_gaussians_has_a_closed_form(exact_gaussian, sigma, steps, k):
    truth = exact_gaussian(sigma / k, steps, DELTA)
    found = group([Gaussian(sigma, steps)], DELTA, k)
    assert truth <= found.epsilon <= truth * 1.002 + 2e-4
    assert (found.records, found.method) == (k, "PLD")
    assert found.relation == f"add or remove up to {k} records"


@pytest.mark.parametrize(("noise", "steps", "k"), [(4.0, 1, 3), (40.0, 10, 5)])
def test_a_group_under_discrete_laplace_pays_for_each_record(
    exact_randomised_response, noise, steps, k
):
    truth = exact_randomised_response(k / noise, steps, DELTA)
    found = group([DiscreteLaplace(noise, steps)], DELTA, k)
    assert truth <= found.epsilon <= truth * 1.002 + 2e-4


@pytest.mark.parametrize(("q", "sigma", "k"), [(0.5, 2.0, 2), (0.8, 4.0, 5), (0.3, 1.5, 3)])
def test_a_group_in_one_sampled_step_is_the_integral_of_its_mixture(q, sigma, k):
    found = group([SubsampledGaussian(q, sigma, 1)], DELTA, k)
    both, none = taken(q, k), [(1.0, 0.0)]
    check_one_step(found.epsilon, [(both, none), (none, both)], sigma)
    assert found.method == "PLD of a mixture of Gaussians"


def test_a_group_in_many_sampled_steps_is_what_simulation_finds():
    """delta = E[1 - e^(epsilon - L)]+ over the summed loss L, by drawing it 100,000 times."""
    q, sigma, steps, k, delta = 0.2, 2.0, 20, 3, 0.01
    epsilon = group([SubsampledGaussian(q, sigma, steps)], delta, k).epsilon
    rng = np.random.default_rng(0)

    def loss(x: np.ndarray) -> np.ndarray:
        ratios = [w * np.exp((2 * m * x - m * m) / (2 * sigma**2)) for w, m in taken(q, k)]
        return np.log(sum(ratios))

    draws = 100_000
    total = np.zeros(draws)
    for _ in range(steps):
        total += loss(rng.binomial(k, q, draws) + sigma * rng.standard_normal(draws))
    found = np.maximum(-np.expm1(epsilon - total), 0)
    assert found.mean() == pytest.approx(delta, abs=5 * found.std() / math.sqrt(draws) + 1e-5)


@pytest.mark.parametrize("plan", [[MNIST], MIXED])
def test_more_records_are_promised_less(plan):
    found = [group(plan, DELTA, k).epsilon for k in (1, 2, 5)]
    assert np.all(np.diff(found) > 0)


@pytest.mark.slow
@settings(max_examples=2, derandomize=True)
@given(st.floats(0.2, 0.5), st.floats(2.0, 4.0), st.integers(10, 60), st.integers(2, 5))
def test_a_group_lies_between_one_record_and_the_conversion(q, sigma, steps, k):
    plan = [SubsampledGaussian(q, sigma, steps), DiscreteLaplace(30.0)]
    found = group(plan, DELTA, k).epsilon
    assert group(plan, DELTA, 1).epsilon <= found
    assert found <= round_up(k * _converted(curve(plan), DELTA, k))
    # Without sampling the group is never better off.
    assert found <= group([Gaussian(sigma, steps), DiscreteLaplace(30.0)], DELTA, k).epsilon


@pytest.mark.parametrize(("epsilon", "sigma"), [(1, 18.28125), (0.2, 82.5)])
@pytest.mark.parametrize("k", [2, 4])
def test_on_the_papers_settings_the_mixture_beats_the_conversion(epsilon, sigma, k):
    plan = [SubsampledGaussian(1 / 15, sigma, 4500)]
    found = group(plan, DELTA, k)
    assert found.method == "PLD of a mixture of Gaussians"
    assert found.delta == DELTA
    assert k * 0.87 * epsilon < found.epsilon < 0.95 * k * _converted(curve(plan), DELTA, k)


@pytest.mark.parametrize("plan", [[MNIST], MIXED, [Gaussian(10.0)]])
def test_the_conversion_is_the_best_delta_to_start_from(plan):
    """A naive search: every delta_1 for one record, what it means for k, the smallest of all."""
    rdp = curve(plan)
    log_deltas = np.arange(math.log(DELTA), -250, -0.05)
    epsilons = np.array([epsilon_of(rdp, math.exp(log_delta)) for log_delta in log_deltas])
    for k in (1, 2, 4, 20):
        group_log_deltas = log_deltas + np.logaddexp.reduce(np.outer(np.arange(k), epsilons))
        best = epsilons[group_log_deltas <= math.log(DELTA) + 1e-12].min()
        assert 0.99 * best < _converted(rdp, DELTA, k) <= best * (1 + 1e-6)


def test_the_conversion_keeps_the_theorem_on_an_exact_curve():
    """One Gaussian release: the group of k has sigma / k, and the conversion is above that."""
    for k in (2, 5, 30):
        found = k * _converted(curve([Gaussian(20.0)]), DELTA, k)
        assert group([Gaussian(20.0)], DELTA, k).epsilon < found


@pytest.mark.parametrize(
    ("plan", "delta", "k"),
    [
        ([SubsampledGaussian(0.01, 60.0, 50)], DELTA, 65),  # more parts than are tried
        ([MNIST], 1e-30, 3),  # below what the discretised distributions resolve
        ([SubsampledGaussian(0.1, 1e300, 10)], DELTA, 3),  # noise that the library fails at
        ([SubsampledGaussian(0.1, 1e-3, 10)], DELTA, 3),  # past any epsilon worth computing
    ],
)
def test_where_the_mixture_fails_the_conversion_stands(plan, delta, k):
    found = group(plan, delta, k)
    assert found.method == "group conversion of RDP"
    assert found.delta == delta
    assert found.epsilon == round_up(k * _converted(curve(plan), delta, k)) < math.inf
    assert found.epsilon >= group(plan, delta, 1).epsilon


def test_where_nothing_can_be_said_nothing_is():
    assert group([MNIST], DELTA, 1024).epsilon == math.inf
    assert group([SubsampledGaussian(0.1, 1e-5, 1)], DELTA, 2).epsilon == math.inf
    assert replace_one([SubsampledGaussian(0.1, 1e-5, 1)], DELTA).epsilon == math.inf


def test_nothing_released_costs_nothing():
    assert group([], DELTA, 10**9).epsilon == 0.0
    assert replace_one([], DELTA).epsilon == 0.0


@pytest.mark.parametrize(("sigma", "steps"), [(5.0, 1), (40.0, 9)])
def test_replacement_under_plain_gaussians_has_a_closed_form(exact_gaussian, sigma, steps):
    truth = exact_gaussian(sigma / 2, steps, DELTA)
    found = replace_one([Gaussian(sigma, steps)], DELTA)
    assert truth <= found.epsilon <= truth * 1.002 + 2e-4
    assert (found.relation, found.records) == ("replace one record", 1)


def test_replacement_under_discrete_laplace_is_a_removal_and_an_addition(exact_randomised_response):
    truth = exact_randomised_response(2 / 30.0, 12, DELTA)
    found = replace_one([DiscreteLaplace(30.0, 12)], DELTA)
    assert truth <= found.epsilon <= truth * 1.002 + 2e-4


@pytest.mark.parametrize(("q", "sigma"), [(0.1, 1.0), (0.5, 2.5), (0.01, 0.7)])
def test_replacement_in_one_sampled_step_is_the_integral_of_the_worst_pair(q, sigma):
    found = replace_one([SubsampledGaussian(q, sigma, 1)], DELTA).epsilon
    up, down = [(1 - q, 0.0), (q, 1.0)], [(1 - q, 0.0), (q, -1.0)]
    check_one_step(found, [(up, down), (down, up)], sigma)


def test_no_other_replacement_is_worse_in_one_dimension():
    rng = np.random.default_rng(0)
    for _ in range(200):
        q, sigma = rng.uniform(0.01, 0.95), rng.uniform(0.3, 3)
        e = math.exp(rng.uniform(-3, 3))
        x = np.linspace(-1 - 12 * sigma, 1 + 12 * sigma, 40_001)

        def excess(g: float, h: float, x=x, q=q, sigma=sigma, e=e) -> float:
            p = (1 - q) * norm.pdf(x, 0, sigma) + q * norm.pdf(x, g, sigma)
            other = (1 - q) * norm.pdf(x, 0, sigma) + q * norm.pdf(x, h, sigma)
            return float(np.maximum(p - e * other, 0).sum() * (x[1] - x[0]))

        assert excess(*rng.uniform(-1, 1, 2)) <= excess(1.0, -1.0) + 1e-9


def test_no_other_replacement_is_worse_in_two_dimensions():
    rng = np.random.default_rng(1)
    for _ in range(40):
        q, sigma = rng.uniform(0.01, 0.95), rng.uniform(0.4, 2)
        e = math.exp(rng.uniform(-2, 2))
        axis = np.linspace(-1 - 8 * sigma, 1 + 8 * sigma, 400)
        x, y = np.meshgrid(axis, axis)

        def excess(g, h, x=x, y=y, q=q, sigma=sigma, e=e, cell=(axis[1] - axis[0]) ** 2) -> float:
            def density(m):
                square = (x - m[0]) ** 2 + (y - m[1]) ** 2
                return np.exp(-square / (2 * sigma**2)) / (2 * math.pi * sigma**2)

            difference = (1 - q) * (1 - e) * density((0, 0)) + q * density(g) - e * q * density(h)
            return float(np.maximum(difference, 0).sum() * cell)

        angles, lengths = rng.uniform(0, 2 * math.pi, 2), rng.uniform(0.5, 1, 2)
        g, h = (
            np.array([math.cos(a), math.sin(a)]) * r for a, r in zip(angles, lengths, strict=True)
        )
        assert excess(g, h) <= excess((1, 0), (-1, 0)) + 1e-6


@pytest.mark.parametrize("plan", [[MNIST], MIXED, [SubsampledGaussian(0.3, 4.0, 30)]])
def test_replacement_costs_more_than_removal_and_no_more_than_a_group_of_two(plan):
    found = replace_one(plan, DELTA)
    assert group(plan, DELTA, 1).epsilon < found.epsilon
    assert found.epsilon <= group(plan, DELTA, 2).epsilon + 2e-4
    assert found.method == "PLD"


def test_a_replacement_that_the_distributions_cannot_resolve_is_converted():
    found = replace_one([MNIST], 1e-30)
    assert found.method == "group conversion of RDP"
    assert found.epsilon == round_up(2 * _converted(curve([MNIST]), 1e-30, 2)) < math.inf


def test_the_order_of_composition_is_nothing():
    assert group(MIXED[::-1], DELTA, 3) == group(MIXED, DELTA, 3)
    assert replace_one(MIXED[::-1], DELTA) == replace_one(MIXED, DELTA)


def test_mixed_plans_are_those_of_less_noise():
    """Without sampling a group of k is one record at a k-th of the noise."""
    plan, less = (
        [Gaussian(30.0, 2), DiscreteLaplace(60.0)],
        [Gaussian(10.0, 2), DiscreteLaplace(20)],
    )
    expected = accountant("pld").epsilon(less, DELTA)
    assert group(plan, DELTA, 3).epsilon == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, None, "2"])
def test_bad_groups_are_refused(bad):
    with pytest.raises(InvalidRequest, match="records"):
        group([Gaussian(1.0)], DELTA, bad)


@pytest.mark.parametrize("bad", [0.0, 1.0, -1.0, math.nan, True])
def test_bad_deltas_are_refused(bad):
    with pytest.raises(InvalidRequest, match="delta"):
        group([Gaussian(1.0)], bad, 2)
    with pytest.raises(InvalidRequest, match="delta"):
        replace_one([Gaussian(1.0)], bad)


def test_what_is_no_mechanism_is_refused():
    with pytest.raises(InvalidRequest, match="dict"):
        group([{"type": "gaussian"}], DELTA, 2)
