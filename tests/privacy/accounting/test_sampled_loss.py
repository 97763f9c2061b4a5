"""The privacy losses of a sampled step, against their definitions."""

import math

import mpmath
import numpy as np
import pytest

from privacy.accounting.prv import PRVAccountant


@pytest.fixture(scope="module")
def added_record():
    from privacy.accounting.prv_losses import RecordAdded

    return RecordAdded


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
def test_the_distribution_function_is_its_definition(added_record, q, sigma):
    ts = np.array([-5, -1, -0.1, -1e-4, -1e-9, 0, 1e-9, 1e-4, 1e-3, 0.01, 0.1, 0.5, 3.0])
    found = added_record(q, sigma).cdf(ts)
    np.testing.assert_allclose(found, [definition(q, sigma, t) for t in ts], rtol=1e-6, atol=1e-13)


def test_the_loss_of_an_addition_ends_at_minus_log_of_one_minus_q(added_record):
    prv = added_record(0.25, 1.0)
    end = -math.log1p(-0.25)
    assert prv.cdf(end) == 1.0
    assert prv.cdf(end - 1e-3) < 1.0
    assert np.all(np.diff(prv.cdf(np.linspace(-4, 4, 2001))) >= 0)


def test_bounds_cover_the_addition_as_well(monkeypatch):
    """Whatever direction is worse has to be the one reported."""
    from privacy.accounting import prv, prv_losses
    from privacy.mechanisms import SubsampledGaussian

    # What the cache remembers was computed before the directions are exchanged.
    monkeypatch.setattr(prv, "_bounds", prv._bounds.__wrapped__)
    plan = [SubsampledGaussian(0.5, 1.0, 10)]
    removal = PRVAccountant().epsilon(plan, 1e-5)
    removed = prv_losses.RecordRemoved
    monkeypatch.setattr(prv_losses, "RecordRemoved", prv_losses.RecordAdded)
    addition = PRVAccountant().epsilon(plan, 1e-5)
    assert addition == pytest.approx(4.8155, rel=0.015)  # dp-accounting's distribution for adding
    assert removal == pytest.approx(10.4599, rel=0.015)
    monkeypatch.setattr(prv_losses, "RecordAdded", removed)
    assert PRVAccountant().epsilon(plan, 1e-5) == removal


@pytest.mark.parametrize(("q", "sigma"), [(1e-6, 100.0), (0.1, 1.0), (0.5, 1e8), (0.01, 0.05)])
def test_the_rdp_that_sets_the_domain_is_a_bound_and_never_fails(added_record, q, sigma):
    values = [added_record(q, sigma).rdp(order) for order in (1.1, 1.9, 2.0, 2.5, 9.9, 63.0)]
    at_two = math.log1p(q**2 * math.expm1(sigma**-2))
    assert values[:3] == pytest.approx([at_two] * 3, rel=1e-9, abs=1e-12)
    assert np.all(np.diff(values) >= -1e-12)
