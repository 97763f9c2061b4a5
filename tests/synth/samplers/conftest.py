import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch


class GaussianOracle:
    """The exact denoiser of data N(m, s^2) in every pixel, and what a sampler makes of it.

    D = (s^2 x + sigma^2 m)/(s^2 + sigma^2) is affine in x, so the mean and the variance of a
    sampler's result follow from one recursion, and the probability-flow ODE is known.
    """

    def __init__(self, m: float = 0.3, s: float = 0.5) -> None:
        self.m, self.s = m, s
        self.calls: list[tuple[torch.Tensor, float, torch.Tensor]] = []

    def denoise(self, x: torch.Tensor, sigma: float, labels: torch.Tensor) -> torch.Tensor:
        self.calls.append((x, sigma, labels))
        return (self.s**2 * x + sigma**2 * self.m) / (self.s**2 + sigma**2)

    def flow(self, x: float, start: float, end: float) -> float:
        """The probability-flow ODE's exact solution from noise level `start` to `end`."""
        ratio = (self.s**2 + end**2) / (self.s**2 + start**2)
        return self.m + math.sqrt(ratio) * (x - self.m)

    def slope(self, sigma: float) -> float:
        """(x - D)/sigma = slope (x - m)."""
        return sigma / (self.s**2 + sigma**2)


def levels(count: int, high: float = 80.0, low: float = 0.002, rho: float = 7.0) -> list[float]:
    """Karras' levels, written out."""
    a, b = high ** (1 / rho), low ** (1 / rho)
    return [(a + i / (count - 1) * (b - a)) ** rho for i in range(count)]


@pytest.fixture
def oracle() -> Callable[..., GaussianOracle]:
    return GaussianOracle


@pytest.fixture
def karras_levels() -> Callable[..., list[float]]:
    return levels


@pytest.fixture
def ddim_moments() -> Callable[..., tuple[float, float]]:
    """Mean - m and variance of stochastic DDIM's result, by the recursion of its equation."""

    def moments(s: float, m: float, steps: int, noise: float = 2.0) -> tuple[float, float]:
        sigmas = levels(steps)
        mean, variance = -m, sigmas[0] ** 2
        for a, b in pairwise(sigmas):
            factor = 1 + 2 * (b - a) / a * (1 - s**2 / (s**2 + a**2))
            mean *= factor
            variance = factor**2 * variance + noise * (a - b) * a
        last = s**2 / (s**2 + sigmas[-1] ** 2)
        return last * mean, last**2 * variance

    return moments


@pytest.fixture
def churn_moments() -> Callable[..., tuple[float, float]]:
    """Mean - m and variance of churn's result, by the recursion of algorithm 2."""

    def moments(
        s: float, m: float, steps: int, S_churn: float, S_min: float, S_max: float, S_noise: float
    ) -> tuple[float, float]:
        sigmas = [*levels(steps), 0.0]
        mean, variance = -m, sigmas[0] ** 2
        for a, b in pairwise(sigmas):
            gamma = min(S_churn / steps, math.sqrt(2) - 1) if S_min <= a <= S_max else 0.0
            raised = a + gamma * a
            variance += (raised**2 - a**2) * S_noise**2
            first = raised / (s**2 + raised**2)
            euler = 1 + (b - raised) * first
            second = b / (s**2 + b**2) * euler if b else first
            factor = 1 + (b - raised) * (first + second) / 2
            mean *= factor
            variance *= factor**2
        return mean, variance

    return moments


@pytest.fixture
def acceptable() -> Callable[..., bool]:
    """Whether draws may come from a normal law of that mean and variance (five sigma, both)."""

    def test(draws: torch.Tensor, mean: float, variance: float) -> bool:
        n = draws.numel()
        off_mean = (draws.mean().item() - mean) / math.sqrt(variance / n)
        off_variance = (draws.var().item() / variance - 1) / math.sqrt(2 / (n - 1))
        return max(abs(off_mean), abs(off_variance)) < 5

    return test
