"""The trade-off curve against closed forms, a brute-force curve and the library's δ(ε)."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from privacy.accounting import pld
from privacy.accounting.base import collapse
from privacy.accounting.tradeoff import RATES, trade_off, trade_offs
from privacy.errors import InvalidRequest
from privacy.mechanisms import DiscreteLaplace, Gaussian, SubsampledGaussian

DELTA = 1e-5
GRID = np.geomspace(1e-5, 0.5, 200)


def mnist(sigma):
    return [SubsampledGaussian(1 / 15, sigma, 4500)]


@pytest.mark.parametrize(
    ("sigma", "power"), [(2.48779, (0.718, 0.322, 0.111)), (18.28, (0.150, 0.0188, 0.0022))]
)
def test_known_values(sigma, power):
    found = trade_off(mnist(sigma), DELTA)
    assert list(found.power) == ["0.1", "0.01", "0.001"]
    assert list(found.power.values()) == pytest.approx(power, abs=6e-4, rel=2e-3)
    assert found.method == "PLD"


@pytest.mark.parametrize(("sigma", "steps"), [(0.5, 1), (1.0, 1), (6.0, 4), (20.0, 1)])
def test_a_gaussian_mechanism_has_its_closed_form(sigma, steps):
    mu = math.sqrt(steps) / sigma
    found = trade_off([Gaussian(sigma, steps)], DELTA)
    exact = norm.cdf(norm.ppf(GRID) + mu)
    assert np.all(found.at(GRID) >= exact - 1e-12)
    assert found.at(GRID) == pytest.approx(exact, rel=2e-3, abs=2e-5)
    assert mu <= found.gdp_mu <= mu + 0.004


def sampled_step_power(q, sigma, rate):
    """Exact power of the better direction of one subsampled step, by its likelihood-ratio test."""

    def mixture(x):
        return (1 - q) * norm.sf(x / sigma) + q * norm.sf((x - 1) / sigma)

    with_it = mixture(sigma * norm.isf(rate))
    at = brentq(lambda x: 1 - mixture(x) - rate, -60 * sigma, 60 * sigma, xtol=1e-13)
    return max(with_it, norm.cdf(at / sigma))


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 0.7), (0.2, 1.0), (0.9, 2.0)])
def test_one_sampled_step_is_its_likelihood_ratio_test(q, sigma):
    found = trade_off([SubsampledGaussian(q, sigma, 1)], DELTA)
    exact = np.array([sampled_step_power(q, sigma, rate) for rate in GRID])
    assert np.all(found.at(GRID) >= exact - 1e-9)
    # Above both directions' curves lies the least that is symmetric: a little more at places.
    assert found.at(GRID) == pytest.approx(exact, rel=0.12, abs=2e-4)


def brute_force_power(epsilon, steps, rate):
    """Every outcome of composed randomised response, the most telling first, the last by chance."""
    p = 1 / (1 + math.exp(-epsilon))
    outcomes = []
    for bits in itertools.product([0, 1], repeat=steps):
        ones = sum(bits)
        outcomes.append(
            (p**ones * (1 - p) ** (steps - ones), (1 - p) ** ones * p ** (steps - ones))
        )
    outcomes.sort(key=lambda pair: pair[0] / pair[1], reverse=True)
    power = 0.0
    for with_it, without in outcomes:
        taken = min(1.0, rate / without)
        power, rate = power + taken * with_it, rate - taken * without
        if rate <= 0:
            break
    return power


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (2.0, 6), (4.0, 10)])
def test_a_small_case_is_its_brute_force_curve(noise, steps):
    found = trade_off([DiscreteLaplace(noise, steps)], DELTA)
    exact = np.array([brute_force_power(1 / noise, steps, rate) for rate in GRID])
    assert np.all(found.at(GRID) >= exact - 1e-9)
    assert found.at(GRID) == pytest.approx(exact, rel=0.01, abs=1e-4)


@pytest.mark.parametrize("plan", [mnist(18.28), [SubsampledGaussian(0.1, 1.5, 40), Gaussian(9.0)]])
def test_every_delta_of_the_library_is_kept(plan):
    """Power at α is at most δ(ε) + e^ε α at each ε: the definition, on values of its own."""
    found, steps = trade_off(plan, DELTA), tuple(collapse(plan))
    total = pld.composed(steps, 1e-4)
    for epsilon in np.linspace(0, 3, 31):
        bound = total.get_delta_for_epsilon(epsilon) + np.exp(epsilon) * GRID
        assert np.all(found.at(GRID) <= bound * (1 + 2e-3) + 1e-5)


@pytest.mark.parametrize("plan", [mnist(18.28), [SubsampledGaussian(0.1, 1.5, 40)]])
def test_mu_bounds_the_curve_down_to_delta_and_hardly_less_does(plan):
    found = trade_off(plan, DELTA)
    rates = np.geomspace(DELTA, 0.5, 777)
    assert np.all(norm.cdf(norm.ppf(rates) + found.gdp_mu) >= found.at(rates))
    assert np.any(norm.cdf(norm.ppf(rates) + found.gdp_mu - 0.01) < found.at(rates))


class TestUnits:
    @pytest.mark.parametrize(("sigma", "k"), [(20.0, 5), (50.0, 100)])
    def test_plain_gaussians_have_a_closed_form(self, sigma, k):
        found = trade_off([Gaussian(sigma)], DELTA, k)
        exact = norm.cdf(norm.ppf(GRID) + k / sigma)
        assert np.all(found.at(GRID) >= exact - 1e-12)
        assert found.at(GRID) == pytest.approx(exact, rel=5e-3, abs=2e-5)
        assert (found.records, found.method) == (k, "PLD of the group")

    def test_in_one_sampled_step_power_is_at_least_the_mixtures(self):
        """k records that all push one way: the binomial mixture, tested by its likelihood ratio."""
        from scipy.stats import binom

        q, sigma, k = 0.3, 2.0, 3
        found = trade_off([SubsampledGaussian(q, sigma, 1)], DELTA, k)
        taken = np.arange(k + 1)
        x = sigma * norm.isf(GRID)[:, None]
        exact = (binom.pmf(taken, k, q) * norm.sf((x - taken) / sigma)).sum(axis=1)
        assert np.all(found.at(GRID) >= exact - 1e-9)
        assert found.at(GRID) == pytest.approx(exact, rel=0.25, abs=2e-4)

    def test_the_curve_of_one_record_k_times_over_lies_above(self, monkeypatch):
        plan = [SubsampledGaussian(0.05, 4.0, 200)]
        mixture, one = trade_off(plan, DELTA, 3), trade_off(plan, DELTA)
        monkeypatch.setattr("privacy.accounting.tradeoff.group_distribution", lambda *_: None)
        composed = trade_off(plan, DELTA, 3)
        assert composed.method.startswith("k-fold composition")
        assert composed.at(GRID) == pytest.approx(one.at(one.at(one.at(GRID))))
        assert np.all(composed.at(GRID) >= mixture.at(GRID) - 1e-6)
        assert composed.gdp_mu >= mixture.gdp_mu - 0.005

    def test_more_records_are_found_more(self):
        plan = [SubsampledGaussian(0.05, 4.0, 100)]
        curves = [trade_off(plan, DELTA, k).at(GRID) for k in (1, 2, 70)]
        assert np.all(np.diff(curves, axis=0) >= 0)


def test_without_a_release_nothing_is_found_and_without_noise_everything():
    nothing = trade_off([], DELTA)
    assert np.array_equal(nothing.at(GRID), GRID)
    everything = trade_off([Gaussian(1e-3)], DELTA, 2)
    assert set(everything.power.values()) == {1.0} and everything.gdp_mu is None


def test_power_never_falls_and_is_at_least_the_rate():
    power = trade_off(mnist(2.48779), DELTA).at(np.linspace(0, 1, 1001))
    assert np.all(np.diff(power) >= 0)
    assert np.all(power >= np.linspace(0, 1, 1001)) and power[-1] == 1.0


def test_the_sentence_has_the_numbers_rounded_up():
    found = trade_off([Gaussian(1.0)], DELTA)
    assert found.sentence("image") == (
        "Somebody who knows everything but whether a particular record was used, and who wrongly "
        "suspects no more than 10, 1 or 0.1 % of those that were not, recognises at most 38.92, "
        "9.24 or 1.83 % of those that were."
    )
    exact = norm.cdf(norm.ppf(np.array(RATES)) + 1.0)
    assert all(stated >= true for stated, true in zip(found.power.values(), exact, strict=True))
    unit = trade_off([Gaussian(10.0)], DELTA, 4)
    assert "a particular patient, with up to 4 records, was used" in unit.sentence("patient")
    assert unit.to_record("patient") == {
        "records": 4,
        "power": unit.power,
        "gdp_mu": unit.gdp_mu,
        "method": unit.method,
        "meaning": unit.sentence("patient"),
    }


def test_a_unit_of_one_record_has_one_curve():
    assert [f.records for f in trade_offs([iter([Gaussian(9.0)])], DELTA, 1)] == [1]
    assert [f.records for f in trade_offs([[Gaussian(9.0)]], DELTA, 3)] == [1, 3]
    assert trade_offs([], DELTA, 3) == trade_offs([[], []], DELTA, 3) == ()


def test_a_record_lies_in_one_part_and_a_unit_in_all():
    train, holdout = [Gaussian(9.0)], [Gaussian(5.0)]
    one, unit = trade_offs([train, holdout], DELTA, 3)
    assert one == trade_off(holdout, DELTA)
    assert unit == trade_off([*train, *holdout], DELTA, 3)


@pytest.mark.parametrize(("delta", "records"), [(0.0, 1), (1.0, 1), (1e-5, 0), (1e-5, 1.5)])
def test_bad_values_are_refused(delta, records):
    with pytest.raises(InvalidRequest):
        trade_off([Gaussian(1.0)], delta, records)
