"""The privacy loss of a pure DP step, against its two outcomes."""

import math

import numpy as np
import pytest

from privacy.accounting.prv import PRVAccountant
from privacy.mechanisms import DiscreteLaplace, Gaussian, SubsampledGaussian


@pytest.fixture(scope="module")
def pure_loss():
    from privacy.accounting.prv_losses import PureLoss

    return PureLoss


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 7.0])
def test_the_loss_takes_two_values(pure_loss, epsilon):
    ts = np.array([-1.01, -1.0, -0.5, 0.0, 0.99, 1.0, 2.0]) * epsilon
    lie = 1 / (1 + math.exp(epsilon))
    np.testing.assert_allclose(pure_loss(epsilon).cdf(ts), [0, *[lie] * 4, 1, 1], rtol=1e-12)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 7.0])
def test_the_rdp_that_sets_the_domain_is_exact(pure_loss, exact_pure_rdp, epsilon):
    for order in (1.1, 2.0, 10.9, 63.0):
        truth = float(exact_pure_rdp(epsilon, order))
        assert pure_loss(epsilon).rdp(order) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 1), (30.0, 50), (1.0, 20)])
def test_the_bounds_enclose_the_truth(exact_randomised_response, noise, steps):
    lower, upper = PRVAccountant().bounds([DiscreteLaplace(noise, steps)], 1e-5)
    truth = exact_randomised_response(1 / noise, steps, 1e-5)
    assert lower <= truth <= upper
    assert upper - lower < 0.03 * truth


@pytest.mark.parametrize("epsilon", [0.01, 1 / 9, 1.0, 7.0])
def test_the_mean_is_that_of_the_two_values(pure_loss, epsilon):
    lie = 1 / (1 + math.exp(epsilon))
    assert pure_loss(epsilon).mean() == pytest.approx(epsilon * (1 - 2 * lie), rel=1e-12)


def test_a_jump_that_numerical_integration_steps_over_is_counted():
    """At epsilon 1/9 the library's own mean misses both jumps, and it gives up or errs."""
    alone = PRVAccountant().bounds([SubsampledGaussian(0.1, 1.5, 23)], 1e-5)
    beside = PRVAccountant().bounds(
        [SubsampledGaussian(0.1, 1.5, 23), DiscreteLaplace(9.0, 2)], 1e-5
    )
    assert alone[1] < beside[0]
    assert beside[1] < alone[1] + 2 / 9


def test_without_pure_losses_the_bounds_are_those_of_the_library():
    from prv_accountant import GaussianMechanism
    from prv_accountant import PRVAccountant as Library

    from privacy.accounting import prv
    from privacy.accounting.prv_losses import RecordRemoved
    from privacy.accounting.rdp import RDPAccountant

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
