"""Losses of single steps as objects of prv-accountant; importing this module loads the library."""

import math

import numpy as np
from prv_accountant import PoissonSubsampledGaussianMechanism
from prv_accountant.privacy_random_variables import PureDPMechanism
from scipy.special import ndtr

from privacy.accounting.rdp import pure_rdp


class RecordRemoved(PoissonSubsampledGaussianMechanism):
    """The library's loss: the record is in the data that the step runs on, and then is not."""

    def rdp(self, alpha: float) -> float:
        """Return an upper bound on the RDP of order `alpha`, from the next whole order.

        The library needs it for the width of its domain only. RDP grows with the order, and the
        library's series for fractions subtracts, which fails for small costs.
        """
        return float(super().rdp(float(math.ceil(alpha))))


class RecordAdded(RecordRemoved):
    """Y = log(dN(0, s^2) / d((1-q) N(0, s^2) + q N(1, s^2)))(x) for x ~ N(0, s^2).

    With l(x) = log(1 - q + q exp((2x - 1) / (2 s^2))), which grows with x, Y = -l(x) < -log(1-q).
    RDP of the removal bounds that of the addition (Mironov, Talwar, Zhang 2019, section 3), so
    the inherited `rdp` serves.
    """

    def __init__(self, sampling_probability: float, noise_multiplier: float) -> None:
        super().__init__(
            sampling_probability=sampling_probability, noise_multiplier=noise_multiplier
        )
        self._q = sampling_probability
        self._sigma = noise_multiplier

    def cdf(self, t: np.ndarray) -> np.ndarray:
        """Return P(Y <= t) = P(x >= x*) with l(x*) = -t; `t` any shape, in nats."""
        t = np.asarray(t, dtype=np.float64)
        inside = t < -math.log1p(-self._q)
        # exp(-t) = 1 - q + q exp(z), written so that a small t keeps its digits.
        excess = np.expm1(np.where(inside, -t, 0.0)) / self._q
        z = np.log1p(np.maximum(excess, np.nextafter(-1.0, 0.0)))
        x = self._sigma**2 * z + 0.5
        return np.where(inside, ndtr(-x / self._sigma), 1.0)

    def pdf(self, t: np.ndarray) -> np.ndarray:
        """Not defined: the library integrates the cumulative function only."""
        raise NotImplementedError


class PureLoss(PureDPMechanism):
    """The library's two-point loss: +epsilon with probability e^epsilon / (1 + e^epsilon)."""

    def mean(self) -> float:
        """Return the mean, epsilon (e^epsilon - 1) / (e^epsilon + 1)."""
        return self.eps * math.tanh(self.eps / 2)

    def rdp(self, alpha: float) -> float:
        """Return the RDP of order `alpha`.

        The library's own, (alpha - 1) epsilon / alpha, is below the truth for most epsilon above
        one. It sets the width of the domain, and too narrow a domain loses mass.
        """
        return float(pure_rdp(self.eps, np.array(alpha)))
