"""The contract that every accountant inherits, what they say about each other, and all three."""

import math
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.accounting import ACCOUNTANTS, EpsilonBounds, accountant, epsilon_bounds
from privacy.accounting.prv import PRVAccountant
from privacy.audit.opacus import opacus_epsilon
from privacy.errors import InvalidRequest
from privacy.mechanisms import DiscreteLaplace, Gaussian, SubsampledGaussian

DELTA = 1e-5
MNIST = {10: 2.48779296875, 1: 18.28125, 0.2: 82.5}  # design.md: q = 1/15, T = 4500


def mnist(sigma: float) -> list[SubsampledGaussian]:
    return [SubsampledGaussian(1 / 15, sigma, 4500)]


few = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.differing_executors],  # one contract, many classes
)
qs = st.floats(0.01, 0.4)
sigmas = st.floats(0.8, 5.0)
counts = st.integers(1, 60)


class AccountantContract:
    """What `Accountant.epsilon` promises. `exact` accountants are close to the truth as well."""

    name: str
    exact = False
    # Bounds with a numerical error are monotone up to that error only.
    grain = 1e-9
    huge = (1e5, 1e300)

    def epsilon(self, *mechanisms, delta=DELTA):
        return accountant(self.name).epsilon(mechanisms, delta)

    def test_nothing_costs_nothing(self):
        assert self.epsilon() == 0.0

    @few
    @given(qs, sigmas, counts)
    def test_more_sampling_more_steps_and_less_noise_cost_more(self, q, sigma, steps):
        base = self.epsilon(SubsampledGaussian(q, sigma, steps))
        least = base * (1 - self.grain) - 1e-9
        assert base > 0
        assert self.epsilon(SubsampledGaussian(1.5 * q, sigma, steps)) >= least
        assert self.epsilon(SubsampledGaussian(q, sigma / 1.3, steps)) >= least
        assert self.epsilon(SubsampledGaussian(q, sigma, 2 * steps)) >= least

    @few
    @given(st.floats(0.7, 40.0), counts)
    def test_more_steps_and_less_noise_of_discrete_laplace_cost_more(self, noise, steps):
        base = self.epsilon(DiscreteLaplace(noise, steps))
        least = base * (1 - self.grain) - 1e-9
        assert base > 0
        assert self.epsilon(DiscreteLaplace(noise / 1.3, steps)) >= least
        assert self.epsilon(DiscreteLaplace(noise, 2 * steps)) >= least

    def test_the_order_of_composition_is_nothing(self):
        parts = [
            SubsampledGaussian(0.1, 1.5, 20),
            Gaussian(6.0, 2),
            SubsampledGaussian(0.05, 1.0, 7),
            DiscreteLaplace(9.0, 2),
            SubsampledGaussian(0.1, 1.5, 3),
            DiscreteLaplace(4.0),
        ]
        assert self.epsilon(*reversed(parts)) == self.epsilon(*parts)

    @few
    @given(qs, sigmas, counts, counts)
    def test_steps_add_up(self, q, sigma, first, second):
        whole = SubsampledGaussian(q, sigma, first + second)
        parts = whole.with_steps(first), whole.with_steps(second)
        assert self.epsilon(*parts) == self.epsilon(whole)
        counted = DiscreteLaplace(20 * sigma, first), DiscreteLaplace(20 * sigma, second)
        assert self.epsilon(*counted) == self.epsilon(DiscreteLaplace(20 * sigma, first + second))

    def test_composing_costs_more_than_each_part_and_less_than_the_sum(self):
        parts = SubsampledGaussian(0.1, 1.2, 30), Gaussian(4.0), DiscreteLaplace(2.0)
        alone = [self.epsilon(p, delta=DELTA / 3) for p in parts]
        both = self.epsilon(*parts)
        assert both > max(self.epsilon(p) for p in parts)
        assert both < sum(alone)

    @pytest.mark.parametrize(("sigma", "steps"), [(5.0, 1), (1.0, 1), (12.0, 9), (0.4, 1)])
    def test_the_plain_gaussian_mechanism_has_a_closed_form(self, exact_gaussian, sigma, steps):
        truth = exact_gaussian(sigma, steps, DELTA)
        found = self.epsilon(Gaussian(sigma, steps))
        assert truth <= found * (1 + 1e-12)
        assert found <= truth * (1.015 if self.exact else 1.25)
        assert self.epsilon(SubsampledGaussian(1.0, sigma, steps)) == found

    @pytest.mark.parametrize(("q", "sigma"), [(0.01, 0.7), (0.2, 1.0), (0.9, 2.0)])
    def test_one_sampled_step_has_a_closed_form(self, exact_sampled_step, q, sigma):
        truth = exact_sampled_step(q, sigma, DELTA)
        found = self.epsilon(SubsampledGaussian(q, sigma, 1))
        assert truth <= found * (1 + 1e-12)
        assert found <= truth * (1.02 if self.exact else 3.0)

    @pytest.mark.parametrize(
        ("noise", "steps"), [(1.0, 1), (0.2, 1), (10.0, 10), (50.0, 100), (500.0, 1000), (1.0, 20)]
    )
    def test_discrete_laplace_has_a_closed_form(self, exact_randomised_response, noise, steps):
        mechanism = DiscreteLaplace(noise, steps)
        truth = exact_randomised_response(mechanism.step_epsilon, steps, DELTA)
        found = self.epsilon(mechanism)
        assert truth <= found * (1 + 1e-12)
        assert found <= truth * (1.02 if self.exact else 1.15)

    def test_a_smaller_delta_costs_more(self):
        mechanism = SubsampledGaussian(0.1, 1.5, 50)
        assert self.epsilon(mechanism, delta=1e-7) > 1.1 * self.epsilon(mechanism, delta=1e-4)

    @pytest.mark.parametrize("sigma", [1e-300, 1e-4, 0.01])
    def test_hopeless_noise_is_not_flattered(self, sigma):
        assert self.epsilon(SubsampledGaussian(0.1, sigma, 10)) > 100
        assert self.epsilon(DiscreteLaplace(sigma)) > 99
        assert self.epsilon(SubsampledGaussian(0.1, 1.0, 10), DiscreteLaplace(sigma)) > 99

    def test_huge_noise_costs_next_to_nothing_and_breaks_nothing(self):
        for sigma in self.huge:
            assert 0 <= self.epsilon(SubsampledGaussian(0.1, sigma, 10)) < 0.2
            assert 0 <= self.epsilon(DiscreteLaplace(sigma, 10)) < 0.2

    @pytest.mark.parametrize(
        "delta", [0.0, 1.0, -0.1, 2.0, math.nan, math.inf, 5e-324, True, "0.1", None], ids=repr
    )
    def test_bad_deltas_are_refused(self, delta):
        with pytest.raises(InvalidRequest, match="delta"):
            self.epsilon(Gaussian(1.0), delta=delta)
        with pytest.raises(InvalidRequest, match="delta"):
            self.epsilon(delta=delta)

    def test_what_is_no_mechanism_is_refused(self):
        with pytest.raises(InvalidRequest, match="dict"):
            self.epsilon(Gaussian(1.0).to_record())


class TestRDP(AccountantContract):
    name = "rdp"

    # Its library bounds a fractional order's series by absolute values, its orders go past 63.
    @pytest.mark.parametrize(("target", "known"), [(10, 9.9959), (1, 0.99106), (0.2, 0.19549)])
    def test_known_values(self, target, known):
        assert known * 0.99 < self.epsilon(*mnist(MNIST[target])) < known * 1.0001 + 5e-6


class TestPLD(AccountantContract):
    name = "pld"
    exact = True
    grain = 1e-3

    @pytest.mark.parametrize(("target", "known"), [(10, 9.2916), (1, 0.9066), (0.2, 0.1751)])
    def test_known_values(self, target, known):
        assert round(self.epsilon(*mnist(MNIST[target])), 4) == known

    @pytest.mark.parametrize(("sigma", "known"), [(1.3037109375, 9.3676), (8.828125, 0.9263)])
    def test_known_values_for_celeba(self, sigma, known):
        found = self.epsilon(SubsampledGaussian(1 / 80, sigma, 24_000), delta=1e-6)
        assert round(found, 4) == known


class TestPRV(AccountantContract):
    name = "prv"
    exact = True
    grain = 0.011
    huge = (1e300,)  # its finest grid takes seconds

    def test_a_delta_past_double_precision_is_refused_rather_than_guessed(self):
        with pytest.raises(InvalidRequest, match="delta=1e-30"):
            self.epsilon(SubsampledGaussian(0.1, 1.0, 10), delta=1e-30)


AGREEING = [
    (mnist(MNIST[10]), 1e-5),
    ([SubsampledGaussian(1 / 15, 20.0, 250)], 1e-5),
    ([SubsampledGaussian(0.02, 0.9, 300), Gaussian(5.0), Gaussian(9.0, 3)], 1e-6),
    ([SubsampledGaussian(0.3, 3.0, 20), SubsampledGaussian(0.01, 0.7, 100)], 1e-5),
    ([*mnist(MNIST[1]), DiscreteLaplace(10.0, 3)], 1e-5),
    ([SubsampledGaussian(0.1, 1.1, 40), Gaussian(8.0), DiscreteLaplace(3.0, 5)], 1e-6),
    ([Gaussian(6.0, 2), DiscreteLaplace(2.0)], 1e-5),
    ([DiscreteLaplace(30.0, 40), DiscreteLaplace(7.0, 3)], 1e-5),
]


@pytest.mark.parametrize(("mechanisms", "delta"), AGREEING)
def test_prv_brackets_pld_and_rdp_is_above(mechanisms, delta):
    lower, upper = PRVAccountant().bounds(mechanisms, delta)
    pld = accountant("pld").epsilon(mechanisms, delta)
    assert lower <= pld <= upper
    assert upper - lower < 0.03 * upper
    assert pld <= accountant("rdp").epsilon(mechanisms, delta)
    assert pld <= opacus_epsilon(mechanisms, delta)


mixtures = st.lists(
    st.one_of(
        st.builds(SubsampledGaussian, qs, sigmas, counts),
        st.builds(Gaussian, st.floats(3.0, 30.0), st.integers(1, 3)),
        st.builds(DiscreteLaplace, st.floats(2.0, 50.0), st.integers(1, 5)),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.slow
@settings(max_examples=6, derandomize=True)
@given(mixtures, st.sampled_from([1e-4, 1e-6]))
def test_any_mixture_is_bracketed_and_bounded(mechanisms, delta):
    lower, upper = PRVAccountant().bounds(mechanisms, delta)
    pld = accountant("pld").epsilon(mechanisms, delta)
    assert lower <= pld <= upper
    assert pld <= accountant("rdp").epsilon(mechanisms, delta)
    assert pld <= opacus_epsilon(mechanisms, delta)


def test_the_registry_knows_each_by_its_name_and_no_other():
    assert set(ACCOUNTANTS) == {"rdp", "prv", "pld"}
    assert all(accountant(name).name == name for name in ACCOUNTANTS)
    with pytest.raises(InvalidRequest, match="expected one of"):
        accountant("moments")


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


def test_importing_the_package_loads_no_accounting_library():
    code = (
        "import sys, privacy.accounting.calibrate, privacy.accounting.guarantee;"
        "heavy = {'dp_accounting', 'prv_accountant', 'opacus', 'torch', 'scipy'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
