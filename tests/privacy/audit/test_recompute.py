"""ε again by other code: never below the truth, and near what admitted it."""

import math

import pytest

from privacy.accounting import accountant
from privacy.accounting.base import round_up
from privacy.audit.ledger import epsilons
from privacy.audit.opacus import opacus_epsilon
from privacy.errors import InvalidRequest
from privacy.mechanisms import DiscreteLaplace, Gaussian, SubsampledGaussian

DELTA = 1e-5
PLANS = [
    [SubsampledGaussian(1 / 15, 18.28125, 4500)],
    [DiscreteLaplace(20.0, 3)],
    [DiscreteLaplace(0.3), Gaussian(2.0)],
    [SubsampledGaussian(0.1, 2.0, 100), Gaussian(10.0, 3), DiscreteLaplace(10.0), Gaussian(7.0)],
]


@pytest.mark.parametrize("plan", PLANS)
def test_opacus_finds_what_admitted(plan):
    """An audit that found more would call an honest ledger broken."""
    admitted = accountant("rdp").epsilon(plan, DELTA)
    assert 0.99 * admitted < opacus_epsilon(plan, DELTA) < admitted + 1e-6


@pytest.mark.parametrize("plan", PLANS)
def test_all_three_are_there_rounded_up_and_in_order(plan):
    found = epsilons(plan, DELTA)
    assert found.rdp == round_up(opacus_epsilon(plan, DELTA))
    assert found.pld == round_up(accountant("pld").epsilon(plan, DELTA))
    assert found.prv == round_up(accountant("prv").epsilon(plan, DELTA))
    assert found.pld <= found.rdp
    assert found.pld <= found.prv


def test_the_order_changes_nothing_that_is_printed():
    assert epsilons(PLANS[-1][::-1], DELTA) == epsilons(PLANS[-1], DELTA)


def test_nothing_costs_nothing():
    found = epsilons([], DELTA)
    assert (found.rdp, found.pld, found.prv) == (0.0, 0.0, 0.0)


def test_what_an_accountant_cannot_resolve_is_left_open():
    found = epsilons([SubsampledGaussian(0.1, 1.0, 10)], 1e-30)
    assert found.prv is None
    assert math.isfinite(found.rdp)


@pytest.mark.parametrize(
    "plan",
    [[Gaussian(1e-200)], [DiscreteLaplace(1e-300, 2**53)], [SubsampledGaussian(0.5, 1e-4, 9)]],
)
def test_hopeless_noise_is_said_to_be(plan):
    assert opacus_epsilon(plan, DELTA) > 1e6


def test_what_is_no_mechanism_is_refused():
    with pytest.raises((InvalidRequest, AttributeError)):
        epsilons([{"type": "gaussian"}], DELTA)
