"""The noise levels a sampler steps through (Karras et al. 2022, eq. 5)."""

import numpy as np


def karras(levels: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """Levels sigma_0 = sigma_max > ... > sigma_{levels-1} = sigma_min, in float64.

    sigma_i = (sigma_max^{1/rho} + i/(levels-1) (sigma_min^{1/rho} - sigma_max^{1/rho}))^rho.
    Both ends are exact, whatever the power rounds to. `levels` is at least 2.
    """
    i = np.arange(levels, dtype=np.float64) / (levels - 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + i * (low - high)) ** rho
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return [float(sigma) for sigma in sigmas]
