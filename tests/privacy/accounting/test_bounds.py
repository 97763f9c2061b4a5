"""The bounds that are shown come from all three accountants, rounded up; None states nothing."""

import pytest

from privacy.accounting import accountant
from privacy.accounting.bounds import EpsilonBounds, epsilon_bounds
from privacy.errors import InvalidRequest
from privacy.mechanisms import Gaussian, SubsampledGaussian


def test_bounds_are_rounded_up():
    plan = [SubsampledGaussian(0.1, 1.5, 40), Gaussian(3.0)]
    for name, bound in epsilon_bounds(plan, 1e-4).stated().items():
        exact = accountant(name).epsilon(plan, 1e-4)
        assert exact <= bound <= exact + 1.1e-4


def test_nothing_costs_nothing():
    assert epsilon_bounds([], 1e-4) == EpsilonBounds(0.0, 0.0, 0.0)


def test_an_accountant_that_can_state_nothing_is_none(monkeypatch):
    def give_up(self, mechanisms, delta):
        raise InvalidRequest("no")

    monkeypatch.setattr(type(accountant("prv")), "epsilon", give_up)
    found = epsilon_bounds([Gaussian(3.25)], 1e-4)
    assert found.prv is None
    assert set(found.stated()) == {"rdp", "pld"}
    assert set(found.to_dict()) == {"rdp", "prv", "pld"}
    monkeypatch.setattr(type(accountant("rdp")), "epsilon", give_up)
    with pytest.raises(InvalidRequest):
        epsilon_bounds([Gaussian(3.125)], 1e-4)


def test_an_infinite_bound_that_only_informs_is_none():
    found = epsilon_bounds([Gaussian(0.01)], 1e-4)
    assert (found.prv, found.pld) == (None, None)
    assert found.rdp > 500
