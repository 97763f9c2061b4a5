"""Privacy random variables by prv-accountant: bounds with a proven numerical error."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, assert_never

import numpy as np
from prv_accountant import GaussianMechanism, PoissonSubsampledGaussianMechanism
from prv_accountant.accountant import compute_safe_domain_size
from prv_accountant.composers import Heterogeneous
from prv_accountant.discretisers import CellCentred
from prv_accountant.domain import Domain
from prv_accountant.privacy_random_variables import PrivacyRandomVariableTruncated, PureDPMechanism
from scipy.special import ndtr

from privacy.accounting.base import MAX_EPSILON, Steps, collapse, merge_gaussians
from privacy.accounting.rdp import RDPAccountant, pure_rdp
from privacy.errors import InvalidRequest
from privacy.mechanisms import DiscreteLaplace, Gaussian, Mechanism, SubsampledGaussian
from privacy.validation import open_probability

# The library's error in epsilon, relative to the RDP epsilon; it is added to the bound.
_RELATIVE_ERROR = 0.005
# The grid has 2 L / mesh points; past this many a call takes long and much memory, so the error
# is let grow instead. The bound stays a bound.
_MAX_POINTS = 2**20


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

    def cdf(self, t: np.ndarray) -> np.ndarray:
        """Return P(Y <= t) = P(x >= x*) with l(x*) = -t; `t` any shape, in nats."""
        t = np.asarray(t, dtype=np.float64)
        q, sigma = float(self.p), float(self.sigma)
        inside = t < -math.log1p(-q)
        # exp(-t) = 1 - q + q exp(z), written so that a small t keeps its digits.
        excess = np.expm1(np.where(inside, -t, 0.0)) / q
        z = np.log1p(np.maximum(excess, np.nextafter(-1.0, 0.0)))
        x = sigma**2 * z + 0.5
        return np.where(inside, ndtr(-x / sigma), 1.0)

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


class PRVAccountant:
    """Numerical composition of privacy losses (Gopi, Lee, Wutschitz 2021), both directions.

    The library itself knows the removal of a record only. Neither direction dominates the other
    in general once steps are composed (Lebeda, Regehr, Kamath, Steinke 2024), so the addition is
    composed here as well and the larger epsilon counts.
    """

    name: ClassVar[str] = "prv"

    def epsilon(self, mechanisms: Sequence[Mechanism], delta: float) -> float:
        """Return an upper bound on epsilon at `delta`; inf above MAX_EPSILON.

        Raises InvalidRequest also where double precision cannot resolve so small a `delta`.
        """
        return self.bounds(mechanisms, delta)[1]

    def bounds(self, mechanisms: Sequence[Mechanism], delta: float) -> tuple[float, float]:
        """Return a lower and an upper bound on the true epsilon at `delta`; raises as `epsilon`."""
        delta = open_probability("delta", delta)
        steps = collapse(mechanisms)
        scale = RDPAccountant().epsilon(mechanisms, delta)
        if not steps:
            return 0.0, 0.0
        if scale > MAX_EPSILON:
            return 0.0, math.inf
        return _bounds(tuple(merge_gaussians(steps)), delta, scale)


@lru_cache(maxsize=256)
def _bounds(steps: tuple[Steps, ...], delta: float, scale: float) -> tuple[float, float]:
    """Compose both ways; cached, since a plan, its report and its audit ask for the same."""
    removal = _composed([_loss(s.step, RecordRemoved) for s in steps], steps, delta, scale)
    if not any(isinstance(s.step, SubsampledGaussian) for s in steps):
        return removal  # these cost the same in both directions
    addition = _composed([_loss(s.step, RecordAdded) for s in steps], steps, delta, scale)
    return max(removal[0], addition[0]), max(removal[1], addition[1])


def _loss(step: Mechanism, sampled: type[RecordRemoved]) -> Any:
    """Return the library's object for one step, sampled Gaussians in the direction `sampled`."""
    match step:
        case SubsampledGaussian(q, sigma, _):
            return sampled(sampling_probability=q, noise_multiplier=sigma)
        case Gaussian(sigma, _):
            return GaussianMechanism(noise_multiplier=sigma)
        case DiscreteLaplace():
            return PureLoss(step.step_epsilon)
        case _:
            assert_never(step)


def _composed(
    prvs: list[Any], steps: Sequence[Steps], delta: float, scale: float
) -> tuple[float, float]:
    """Return the lower and upper epsilon of one direction."""
    counts = [s.number for s in steps]
    delta_error = delta / 1000
    epsilon_error = _epsilon_error(scale, sum(counts), delta_error)
    try:
        total = _total(prvs, counts, epsilon_error, delta_error)
        lower, _, upper = total.compute_epsilon(delta, delta_error, epsilon_error)
        if math.isnan(lower) or math.isnan(upper):
            raise ValueError("the library returned no number")
    except (ValueError, RuntimeError, AssertionError, IndexError) as error:
        raise InvalidRequest(
            f"accountant 'prv': cannot resolve delta={delta!r} for {sum(counts)} steps in double "
            "precision. Use 'pld' or 'rdp'."
        ) from error
    return max(lower, 0.0), max(upper, 0.0)


def _total(prvs: list[Any], counts: list[int], epsilon_error: float, delta_error: float) -> Any:
    """Return the library's distribution of the summed loss, by Algorithm 1 of the paper.

    As in the library's own accountant, but for the means: it integrates every distribution function
    numerically, which steps over the jumps of a pure loss, and the error of a mean is multiplied by
    the number of steps. A pure loss has its mean in closed form.
    """
    reach = compute_safe_domain_size(prvs, counts, epsilon_error, delta_error)
    domain = Domain.create_aligned(-reach, reach, _mesh(epsilon_error, sum(counts), delta_error))
    truncated = [
        prv
        if isinstance(prv, PureLoss)
        else PrivacyRandomVariableTruncated(prv, domain.t_min(), domain.t_max())
        for prv in prvs
    ]
    discrete = [CellCentred().discretise(prv, domain) for prv in truncated]
    return Heterogeneous(discrete).compute_composition(counts)


def _mesh(epsilon_error: float, steps: int, delta_error: float) -> float:
    """Return the width of the grid that keeps both errors (Theorem 5.5 of the paper)."""
    return epsilon_error / math.sqrt(steps / 2 * math.log(12 / delta_error))


def _epsilon_error(scale: float, steps: int, delta_error: float) -> float:
    """Return the error in epsilon to request: in proportion to epsilon, as the grid allows.

    The grid covers about [-(scale + 3), scale + 3] (Remark 5.6 of the paper).
    """
    points_times_error = 2 * (1.5 * scale + 3) / _mesh(1.0, steps, delta_error)
    return max(_RELATIVE_ERROR * scale, points_times_error / _MAX_POINTS)
