"""RDP curves against sums and integrals in forty digits."""

import logging

import numpy as np
import pytest
from dp_accounting import (
    GaussianDpEvent,
    LaplaceDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    RandomizedResponseDpEvent,
)
from dp_accounting.rdp import RdpAccountant, compute_epsilon

from privacy.accounting.rdp import ORDERS, curve, epsilon_of
from privacy.audit.opacus import step_rdp
from privacy.mechanisms import DiscreteLaplace, Gaussian, SubsampledGaussian

STEPS = [(1 / 15, 2.48779296875), (0.01, 1.1), (0.5, 20.0), (1 / 80, 8.828125), (0.001, 0.5)]


def at(order: float, values: np.ndarray) -> float:
    (index,) = np.flatnonzero(np.isclose(ORDERS, order, rtol=1e-12))
    return float(values[index])


@pytest.mark.parametrize(("q", "sigma"), STEPS)
@pytest.mark.parametrize("order", [2, 3, 10, 36, 63, 1024])
def test_integer_orders_are_the_binomial_sum(exact_sampled_rdp, q, sigma, order):
    truth = float(exact_sampled_rdp(q, sigma, order))
    assert at(order, curve([SubsampledGaussian(q, sigma, 1)])) == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize(("q", "sigma"), [(1 / 15, 2.48779296875), (0.01, 1.1), (0.1, 0.5)])
@pytest.mark.parametrize("order", [1.1, 1.5, 2.5, 3.4, 7.5])
def test_fractional_orders_are_bounded_from_above_and_near(exact_sampled_rdp, q, sigma, order):
    truth = float(exact_sampled_rdp(q, sigma, order))
    found = at(order, curve([SubsampledGaussian(q, sigma, 1)]))
    assert found >= truth * (1 - 1e-9)
    if order > 2:
        assert found <= truth * 1.01


@pytest.mark.parametrize(("q", "sigma"), [(1e-6, 100.0), (1e-5, 1e4), (1e-3, 1e6)])
@pytest.mark.parametrize("order", [1.5, 2, 3, 17, 63, 1024])
def test_rounding_does_not_eat_a_tiny_cost(exact_sampled_rdp, q, sigma, order):
    """In double precision these sums are rounding error, zero or below; steps multiply it."""
    truth = float(exact_sampled_rdp(q, sigma, max(order, 2)))
    found = at(order, curve([SubsampledGaussian(q, sigma, 1)]))
    assert truth * (1 - 1e-6) <= found < truth + 1e-11


@pytest.mark.parametrize("sigma", [0.003, 0.03, 0.3, 1.0, 30.0, 1e7])
@pytest.mark.parametrize("q", [1e-4, 0.1, 0.99, 1.0])
def test_curves_are_finite_and_grow_with_the_order(q, sigma):
    values = curve([SubsampledGaussian(q, sigma, 1)])
    assert np.all(np.isfinite(values[ORDERS >= 2]))
    assert np.all(values > 0)
    # Fractional orders are bounds only, so neighbours are compared among whole orders.
    whole = values[(ORDERS >= 2) & (np.floor(ORDERS) == ORDERS)]
    assert np.all(np.diff(whole) >= -1e-12)


def test_the_plain_gaussian_mechanism_is_alpha_over_two_sigma_squared():
    np.testing.assert_allclose(curve([Gaussian(3.0, 4)]), 4 * ORDERS / 18, rtol=1e-12)


NOISES = [1e-300, 1e-3, 0.02, 0.1, 0.3, 1.0, 3.0, 11.0, 30.0, 100.0, 1e4, 1e8]


@pytest.mark.parametrize("noise", NOISES[1:])
def test_discrete_laplace_is_the_sum_over_two_outcomes(exact_pure_rdp, noise):
    """Both arrangements of it, at every order: that which admits and that of the audit."""
    step = DiscreteLaplace(noise)
    truth = [float(exact_pure_rdp(step.step_epsilon, order)) for order in ORDERS]
    np.testing.assert_allclose(curve([step]), truth, rtol=1e-13)
    np.testing.assert_allclose([step_rdp(step, order) for order in ORDERS], truth, rtol=1e-13)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 2.0, 9.0])
def test_discrete_laplace_is_randomised_response_by_its_library(epsilon):
    library = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_ONE)
    library.compose(RandomizedResponseDpEvent(2 / (1 + np.exp(epsilon)), 2))
    np.testing.assert_allclose(curve([DiscreteLaplace(1 / epsilon)]), library.rdp, rtol=1e-7)


@pytest.mark.parametrize("noise", NOISES)
def test_pure_dp_never_costs_more_than_its_epsilon_nor_its_concentrated_bound(noise):
    """RDP <= min(epsilon, alpha epsilon^2 / 2): Bun and Steinke 2016, Proposition 3.3."""
    epsilon = DiscreteLaplace(noise).step_epsilon
    with np.errstate(over="ignore"):
        bound = np.minimum(epsilon, ORDERS * epsilon * epsilon / 2)
    assert np.all(curve([DiscreteLaplace(noise)]) <= bound * (1 + 1e-12))


def test_the_continuous_laplace_mechanism_would_understate_it():
    continuous = RdpAccountant(ORDERS)
    continuous.compose(LaplaceDpEvent(1.0))
    assert np.all(curve([DiscreteLaplace(1.0)]) > continuous.rdp)
    assert at(2, curve([DiscreteLaplace(1.0)])) > 1.15 * at(2, continuous.rdp)


def test_past_the_range_of_a_double_nothing_is_promised():
    assert epsilon_of(curve([DiscreteLaplace(1e-300, 2**53)]), 1e-5) == np.inf


def test_composition_adds_and_nothing_is_zero():
    first, second, third = SubsampledGaussian(0.1, 1.0, 5), Gaussian(2.0), DiscreteLaplace(3.0, 2)
    parts = curve([first]) + curve([second]) + curve([third])
    np.testing.assert_allclose(curve([third, first, second]), parts, rtol=1e-14)
    assert np.all(curve([]) == 0)


def test_a_result_may_be_changed_without_spoiling_the_next():
    expected = curve([Gaussian(2.0)]).copy()
    curve([Gaussian(2.0)])[:] = 0
    assert np.array_equal(curve([Gaussian(2.0)]), expected)


def test_the_orders_reach_from_near_one_past_512_and_cannot_be_changed():
    assert 1.01 < ORDERS[0] < 1.1
    assert ORDERS[-1] >= 512
    assert np.all(np.diff(ORDERS) > 0)
    assert not ORDERS.flags.writeable


def test_no_finite_order_means_no_guarantee():
    assert epsilon_of(np.full_like(ORDERS, np.inf), 1e-5) == np.inf


@pytest.mark.parametrize(("q", "sigma"), [*STEPS, (0.9, 2.0), (0.99, 30.0), (1.0, 3.0), (0.3, 0.8)])
def test_the_curve_is_that_of_its_library(q, sigma):
    """Between whole orders the library has the series alone, which may be far above the chord."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns where its series is too slow
    library = RdpAccountant(ORDERS)
    library.compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)))
    found, whole = curve([SubsampledGaussian(q, sigma, 1)]), np.floor(ORDERS) == ORDERS
    np.testing.assert_allclose(found[whole], library.rdp[whole], rtol=1e-9)
    assert np.all(found[~whole] <= library.rdp[~whole] * (1 + 1e-9) + 1e-9)
    for delta in (1e-3, 1e-5, 1e-12):
        assert epsilon_of(library.rdp, delta) == compute_epsilon(ORDERS, library.rdp, delta)[0]
