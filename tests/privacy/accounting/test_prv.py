"""Privacy random variables of a sampled and of a pure step, against their definitions."""

import math

import mpmath
import numpy as np
import pytest
from prv_accountant import GaussianMechanism
from prv_accountant import PRVAccountant as Library

from privacy.accounting import prv
from privacy.accounting.prv import PRVAccountant, PureLoss, RecordAdded, RecordRemoved
from privacy.accounting.rdp import RDPAccountant
from privacy.mechanisms import DiscreteLaplace, Gaussian, SubsampledGaussian


def definition(q: float, sigma: float, t: float) -> float:
    """P(log(N(x; 0) / mixture(x)) <= t) for x ~ N(0, sigma^2), by the x where the loss is t."""
    with mpmath.workdps(40):
        q, t = mpmath.mpf(q), mpmath.mpf(float(t))
        inner = (mpmath.exp(-t) - 1 + q) / q
        if inner <= 0:
            return 1.0
        x = mpmath.mpf(sigma) ** 2 * mpmath.log(inner) + mpmath.mpf(1) / 2
        loss = -mpmath.log(1 - q + q * mpmath.exp((2 * x - 1) / (2 * mpmath.mpf(sigma) ** 2)))
        assert mpmath.almosteq(loss, t, rel_eps=1e-20, abs_eps=1e-25)
        return float(mpmath.ncdf(-x / sigma))


@pytest.mark.parametrize(("q", "sigma"), [(0.0667, 18.0), (0.3, 0.8), (0.01, 1.1), (0.9, 2.0)])
def test_the_distribution_function_is_its_definition(q, sigma):
    ts = np.array([-5, -1, -0.1, -1e-4, -1e-9, 0, 1e-9, 1e-4, 1e-3, 0.01, 0.1, 0.5, 3.0])
    found = RecordAdded(q, sigma).cdf(ts)
    np.testing.assert_allclose(found, [definition(q, sigma, t) for t in ts], rtol=1e-6, atol=1e-13)


def test_the_loss_of_an_addition_ends_at_minus_log_of_one_minus_q():
    prv = RecordAdded(0.25, 1.0)
    end = -math.log1p(-0.25)
    assert prv.cdf(end) == 1.0
    assert prv.cdf(end - 1e-3) < 1.0
    assert np.all(np.diff(prv.cdf(np.linspace(-4, 4, 2001))) >= 0)


def test_bounds_cover_the_addition_as_well(monkeypatch):
    """Whatever direction is worse has to be the one reported."""
    # What the cache remembers was computed before the directions are exchanged.
    monkeypatch.setattr(prv, "_bounds", prv._bounds.__wrapped__)
    plan = [SubsampledGaussian(0.5, 1.0, 10)]
    removal = PRVAccountant().epsilon(plan, 1e-5)
    monkeypatch.setattr(prv, "RecordRemoved", RecordAdded)
    addition = PRVAccountant().epsilon(plan, 1e-5)
    assert addition == pytest.approx(4.8155, rel=0.015)  # dp-accounting's distribution for adding
    assert removal == pytest.approx(10.4599, rel=0.015)
    monkeypatch.setattr(prv, "RecordAdded", RecordRemoved)
    assert PRVAccountant().epsilon(plan, 1e-5) == removal


@pytest.mark.parametrize(("q", "sigma"), [(1e-6, 100.0), (0.1, 1.0), (0.5, 1e8), (0.01, 0.05)])
def test_the_rdp_that_sets_the_domain_is_a_bound_and_never_fails(q, sigma):
    values = [RecordAdded(q, sigma).rdp(order) for order in (1.1, 1.9, 2.0, 2.5, 9.9, 63.0)]
    at_two = math.log1p(q**2 * math.expm1(sigma**-2))
    assert values[:3] == pytest.approx([at_two] * 3, rel=1e-9, abs=1e-12)
    assert np.all(np.diff(values) >= -1e-12)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 7.0])
def test_the_loss_takes_two_values(epsilon):
    ts = np.array([-1.01, -1.0, -0.5, 0.0, 0.99, 1.0, 2.0]) * epsilon
    lie = 1 / (1 + math.exp(epsilon))
    np.testing.assert_allclose(PureLoss(epsilon).cdf(ts), [0, *[lie] * 4, 1, 1], rtol=1e-12)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 7.0])
def test_the_rdp_of_a_pure_loss_is_exact(exact_pure_rdp, epsilon):
    for order in (1.1, 2.0, 10.9, 63.0):
        truth = float(exact_pure_rdp(epsilon, order))
        assert PureLoss(epsilon).rdp(order) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 1), (30.0, 50), (1.0, 20)])
def test_the_bounds_enclose_the_truth(exact_randomised_response, noise, steps):
    lower, upper = PRVAccountant().bounds([DiscreteLaplace(noise, steps)], 1e-5)
    truth = exact_randomised_response(1 / noise, steps, 1e-5)
    assert lower <= truth <= upper
    assert upper - lower < 0.03 * truth


@pytest.mark.parametrize("epsilon", [0.01, 1 / 9, 1.0, 7.0])
def test_the_mean_is_that_of_the_two_values(epsilon):
    lie = 1 / (1 + math.exp(epsilon))
    assert PureLoss(epsilon).mean() == pytest.approx(epsilon * (1 - 2 * lie), rel=1e-12)


def test_a_jump_that_numerical_integration_steps_over_is_counted():
    """At epsilon 1/9 the library's own mean misses both jumps, and it gives up or errs."""
    alone = PRVAccountant().bounds([SubsampledGaussian(0.1, 1.5, 23)], 1e-5)
    beside = PRVAccountant().bounds(
        [SubsampledGaussian(0.1, 1.5, 23), DiscreteLaplace(9.0, 2)], 1e-5
    )
    assert alone[1] < beside[0]
    assert beside[1] < alone[1] + 2 / 9


def test_without_pure_losses_the_bounds_are_those_of_the_library():
    plan, delta = [SubsampledGaussian(0.1, 1.2, 30), Gaussian(5.0)], 1e-5
    error = prv._epsilon_error(RDPAccountant().epsilon(plan, delta), 31, delta / 1000)
    library = Library(
        prvs=[RecordRemoved(0.1, 1.2), GaussianMechanism(5.0)],
        max_self_compositions=[30, 1],
        eps_error=error,
        delta_error=delta / 1000,
    )
    lower, _, upper = library.compute_epsilon(delta, [30, 1])
    assert PRVAccountant().bounds(plan, delta) == (lower, upper)
