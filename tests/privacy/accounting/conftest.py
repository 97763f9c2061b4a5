"""Oracles for accountants: closed forms in double and mpmath precision."""

import math

import mpmath
import pytest
from scipy.optimize import brentq
from scipy.stats import norm


def gaussian_epsilon(noise_multiplier: float, steps: int, delta: float) -> float:
    """The exact epsilon of `steps` Gaussian releases (Balle and Wang 2018, Theorem 8)."""
    mu = math.sqrt(steps) / noise_multiplier

    def excess(epsilon: float) -> float:
        below = math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return norm.cdf(mu / 2 - epsilon / mu) - below - delta

    return 0.0 if excess(0.0) <= 0 else brentq(excess, 0.0, 10 * mu * (mu + 10), xtol=1e-13)


def sampled_step_epsilon(q: float, sigma: float, delta: float) -> float:
    """The exact epsilon of one subsampled Gaussian step, the worse of both directions."""

    def threshold(loss: float) -> float:
        """The x at which log(1 - q + q exp((2x - 1)/(2 sigma^2))) equals `loss`."""
        return sigma**2 * math.log1p(math.expm1(loss) / q) + 0.5

    def removal(epsilon: float) -> float:
        x = threshold(epsilon)
        mixture = (1 - q) * norm.sf(x / sigma) + q * norm.sf((x - 1) / sigma)
        return mixture - math.exp(epsilon) * norm.sf(x / sigma) - delta

    def addition(epsilon: float) -> float:
        if epsilon >= -math.log1p(-q):
            return -delta
        x = threshold(-epsilon)
        mixture = (1 - q) * norm.cdf(x / sigma) + q * norm.cdf((x - 1) / sigma)
        return norm.cdf(x / sigma) - math.exp(epsilon) * mixture - delta

    return max(
        0.0 if f(0.0) <= 0 else brentq(f, 0.0, 200.0, xtol=1e-13) for f in (removal, addition)
    )


def randomised_response_epsilon(step_epsilon: float, steps: int, delta: float) -> float:
    """The exact epsilon of composed randomised response: the loss is a shifted binomial.

    With j steps that tell the truth the loss is (2 j - T) step_epsilon, so delta(epsilon) is a sum
    of P[j] - e^epsilon Q[j] over the losses above epsilon, which is solved piece by piece.
    """
    with mpmath.workdps(40):
        e = mpmath.mpf(step_epsilon)
        p = 1 / (1 + mpmath.exp(-e))
        q = mpmath.exp(-e) * p
        upper = lower = mpmath.mpf(0)
        for j in range(steps, -1, -1):
            upper += mpmath.binomial(steps, j) * p**j * q ** (steps - j)
            lower += mpmath.binomial(steps, j) * q**j * p ** (steps - j)
            if upper > delta:
                epsilon = mpmath.log((upper - delta) / lower)
                if epsilon >= (2 * (j - 1) - steps) * e:
                    return max(float(epsilon), 0.0)
        return 0.0


def pure_rdp(epsilon: float, alpha: float) -> mpmath.mpf:
    """RDP of randomised response, as the sum over its two outcomes."""
    with mpmath.workdps(60):
        e, a = mpmath.mpf(epsilon), mpmath.mpf(alpha)
        p = 1 / (1 + mpmath.exp(-e))
        q = mpmath.exp(-e) * p
        return mpmath.log(p**a * q ** (1 - a) + q**a * p ** (1 - a)) / (a - 1)


def sampled_rdp(q: float, sigma: float, alpha: float) -> mpmath.mpf:
    """RDP of one subsampled Gaussian step: the binomial sum, or the integral it stands for."""
    with mpmath.workdps(40):
        q_, sigma_, alpha_ = mpmath.mpf(q), mpmath.mpf(sigma), mpmath.mpf(alpha)
        if float(alpha).is_integer():
            total = mpmath.fsum(
                mpmath.binomial(alpha_, k)
                * (1 - q_) ** (alpha_ - k)
                * q_**k
                * mpmath.exp(mpmath.mpf(k * (k - 1)) / (2 * sigma_**2))
                for k in range(int(alpha) + 1)
            )
        else:

            def integrand(x: mpmath.mpf) -> mpmath.mpf:
                ratio = 1 - q_ + q_ * mpmath.exp((2 * x - 1) / (2 * sigma_**2))
                return mpmath.npdf(x, 0, sigma_) * ratio**alpha_

            edges = [-40, -10, -3, 0, 3, 6, 10, 20]
            points = [e * sigma_ for e in edges] + [40 * sigma_ + alpha_]
            total = mpmath.quad(integrand, points)
        return mpmath.log(total) / (alpha_ - 1)


@pytest.fixture(scope="session")
def exact_gaussian():
    return gaussian_epsilon


@pytest.fixture(scope="session")
def exact_sampled_step():
    return sampled_step_epsilon


@pytest.fixture(scope="session")
def exact_sampled_rdp():
    return sampled_rdp


@pytest.fixture(scope="session")
def exact_randomised_response():
    return randomised_response_epsilon


@pytest.fixture(scope="session")
def exact_pure_rdp():
    return pure_rdp
