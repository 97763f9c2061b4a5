"""The filter and the accountant have to say the same."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting.rdp import ORDERS, RDPAccountant, RDPFilter, curve
from privacy.errors import InvalidRequest
from privacy.mechanisms import DiscreteLaplace, Gaussian, SubsampledGaussian

epsilons = st.floats(1e-3, 50)
deltas = st.floats(1e-12, 0.1)
plans = st.lists(
    st.one_of(
        st.builds(Gaussian, st.floats(0.3, 300), st.integers(1, 1000)),
        st.builds(DiscreteLaplace, st.floats(0.3, 300), st.integers(1, 1000)),
    ),
    min_size=0,
    max_size=3,
)


@settings(deadline=None)
@given(epsilons, deltas, plans)
def test_admitting_is_having_an_epsilon_within_the_budget(epsilon, delta, plan):
    spent = RDPAccountant().epsilon(plan, delta)
    budget = RDPFilter(epsilon, delta)
    assert budget.epsilon(curve(plan)) == spent
    if abs(spent - epsilon) > 1e-9:
        assert budget.admits(curve(plan)) == (spent < epsilon)


@settings(deadline=None)
@given(deltas, plans.filter(bool))
def test_a_budget_admits_exactly_what_the_accountant_charges(delta, plan):
    spent = RDPAccountant().epsilon(plan, delta)
    if spent > 0:
        assert RDPFilter(spent + 1e-9, delta).admits(curve(plan))
        if spent > 1e-8:
            assert not RDPFilter(spent - 1e-9, delta).admits(curve(plan))


@pytest.mark.parametrize(("epsilon", "delta"), [(10, 1e-5), (0.2, 1e-6), (1, 0.01)])
def test_each_order_inverts_the_conversion(epsilon, delta):
    budget = RDPFilter(epsilon, delta)
    renyi = budget.bound > -2 * math.log1p(-(delta**2))
    assert renyi.sum() > 10
    for index in np.flatnonzero(renyi):
        lone = np.full_like(ORDERS, np.inf)
        lone[index] = budget.bound[index]
        assert budget.epsilon(lone) == pytest.approx(epsilon, abs=1e-9)
        assert budget.admits(lone)
        lone[index] += 1e-9 * max(1.0, epsilon)
        assert not budget.admits(lone)


def test_one_order_within_its_bound_is_enough_and_none_is_too_few():
    budget = RDPFilter(1.0, 1e-5)
    over = np.maximum(budget.bound, 0) + 0.01
    assert not budget.admits(over)
    over[np.argmax(budget.bound)] -= 0.02
    assert budget.admits(over)


def test_nothing_is_admitted_and_no_privacy_is_not():
    budget = RDPFilter(1.0, 1e-5)
    assert budget.admits(curve([]))
    assert budget.epsilon(curve([])) == 0
    hopeless = curve([SubsampledGaussian(0.1, 1e-5, 1)])
    assert not budget.admits(hopeless)
    assert budget.epsilon(hopeless) == math.inf


def test_charges_stop_where_the_budget_ends():
    """Blocks of steps are admitted one by one, as in a run, until the plan's last step."""
    block = curve([SubsampledGaussian(1 / 15, 18.28125, 100)])
    budget = RDPFilter(1.0, 1e-5)
    admitted = sum(budget.admits(n * block) for n in range(1, 100))
    assert 45 <= admitted < 50
    assert budget.admits(admitted * block)
    assert not budget.admits((admitted + 1) * block)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 5e-324, True, "1", None], ids=repr)
def test_bad_budgets_are_refused(bad):
    with pytest.raises(InvalidRequest, match="epsilon"):
        RDPFilter(bad, 1e-5)
    with pytest.raises(InvalidRequest, match="delta"):
        RDPFilter(1.0, bad)


def test_a_delta_of_one_is_refused():
    with pytest.raises(InvalidRequest, match="delta"):
        RDPFilter(1.0, 1.0)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(3),
        np.zeros((1, len(ORDERS))),
        np.full(len(ORDERS), np.nan),
        np.where(ORDERS == 2, np.nan, 0.0),
        np.where(ORDERS == 2, -1e-9, 1.0),
    ],
)
def test_what_is_no_curve_fails_closed(bad):
    with pytest.raises(InvalidRequest, match="RDP curve"):
        RDPFilter(1.0, 1e-5).admits(bad)
    with pytest.raises(InvalidRequest, match="RDP curve"):
        RDPFilter(1.0, 1e-5).epsilon(bad)


def test_the_bound_cannot_be_raised_in_place():
    with pytest.raises(ValueError, match="read-only"):
        RDPFilter(1.0, 1e-5).bound[0] = 9
