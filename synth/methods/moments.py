"""Noisy moments: a mixture of Gaussians a class, and a teacher that labels what it draws.

Sums over all records are released by Gaussian mechanisms; everything between and after them is
free. All sizes follow from (ε, δ), N and the images' shape by rule, none is chosen by hand.

One mechanism with noise multiplier σ₁ would cost the whole budget. A part with share s has
σ₁/√s, and σ₁√(T/s) in each of T equal steps: Σ 1/σᵢ² = 1/σ₁², so they compose to exactly that.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from privacy.accounting.calibrate import noise_multiplier
from privacy.ledger.records import Component
from privacy.mechanisms import Gaussian
from synth.methods import base

if TYPE_CHECKING:
    from torch import Tensor

    from privacy.collective import Collective
    from synth.preconditioning import Denoiser
    from synth.records import Records
    from synth.settings import ModelSettings
    from synth.storage import StoragePath

SUMS, SCATTER, LLOYD, MIXTURE = "sums", "scatter", "lloyd", "mixture"
HISTOGRAM, TEACHER, CHOICE = "histogram", "teacher", "choice"

# Shares of the budget; steps where a part takes several.
_SHARES = {SUMS: 0.0294, SCATTER: 0.0441, LLOYD: 0.1029, MIXTURE: 0.1176, HISTOGRAM: 0.006}
_SHARES |= {TEACHER: 0.68, CHOICE: 0.02}
_STEPS = {LLOYD: 3, TEACHER: 60}
# Relative to the target; what composition rounds is far less.
_SLACK = 1e-5

# A scatter's noise may reach this far, in units of its sensitivity over N, ...
_EDGE = 0.01
# ... its matrix has at most so many rows, ...
_MAX_COEFFICIENTS = 2048
# ... and a component's centre as far as this in units of C.
_CENTRE_NOISE = 0.028
_MAX_COMPONENTS = 100


@dataclass(frozen=True)
class Sizes:
    """What follows by rule from the noise, N and the shape of the images."""

    kept: int  # m: cosines of a side that the lowpass keeps
    components: int  # K of a class's mixture
    clip_norm: float  # C of a deviation from its class's mean
    sums_weight: float  # s of a record's count beside its image
    weight: float  # s beside its deviation

    @classmethod
    def of(
        cls, records: int, facts: base.PublicFacts, scatter_sigma: float, mixture_sigma: float
    ) -> "Sizes":
        """Return the sizes for noise multipliers of the scatter and of the mixture.

        >>> Sizes.of(60_000, base.PublicFacts(28, 1, 10), 19.3, 11.8).components
        9
        """
        size, pixels = facts.size, facts.channels * facts.size**2
        # Half of the cube's half diagonal: public, and few deviations are longer.
        C = math.sqrt(pixels) / 4
        # The eigenvalues of a scatter's noise end at √2·m·√c·σC²/N (Wigner).
        least = max(math.ceil(size / 2), min(size, 8))
        affordable = _EDGE * records / (math.sqrt(2 * facts.channels) * scatter_sigma)
        largest = min(size, math.isqrt(_MAX_COEFFICIENTS // facts.channels))
        kept = min(max(int(affordable), least), largest)
        s = C / 4
        noise = mixture_sigma * math.sqrt(s**2 + 2 * C**2)
        K = int(_CENTRE_NOISE * C * records / facts.classes / noise)
        return cls(kept, min(max(K, 1), _MAX_COMPONENTS), C, 5 * math.sqrt(pixels / 784), s)


class Moments(base.Method):
    """Noisy class sums, scatter, mixture, histogram, a teacher and a choice of warps."""

    name = "moments"
    sections = ()

    def __init__(
        self,
        records: int,
        facts: base.PublicFacts,
        clip_norm: float,
        resources: base.WorkerResources,
    ) -> None:
        # Every query has its own bound, by the images' type: the spec's clip norm is DP-SGD's.
        self._records, self._facts = records, facts

    def components(
        self, epsilon: float, delta: float, calibration: Literal["rdp", "prv"]
    ) -> tuple[Component, ...]:
        """Divide one Gaussian mechanism of (ε, δ) by shares; see `Method.components`."""
        sigma = noise_multiplier(
            epsilon, delta, 1.0, 1, accountant=calibration, tolerance=epsilon * _SLACK
        )
        sigma *= 1 + 1e-9  # more than what composition may round
        components = _divided(sigma, _SHARES)
        if self.sizes(components).components > 1:
            return components
        # One component a class needs no rounds: their share goes to the mixture's release.
        shares = {name: share for name, share in _SHARES.items() if name != LLOYD}
        shares[MIXTURE] += _SHARES[LLOYD]
        return _divided(sigma, shares)

    def sizes(self, components: Sequence[Component]) -> Sizes:
        """Return the sizes for what was reserved."""
        sigma = {part.name: part.mechanism.noise_multiplier for part in components}
        sizes = Sizes.of(self._records, self._facts, sigma[SCATTER], sigma[MIXTURE])
        if LLOYD in sigma:
            return sizes
        return Sizes(sizes.kept, 1, sizes.clip_norm, sizes.sums_weight, sizes.weight)

    def extent(self, components: Sequence[Component]) -> base.Extent:
        """Return m, K and passes over the records; see `Method.extent`."""
        sizes, steps = self.sizes(components), sum(part.mechanism.steps for part in components)
        return base.Extent(
            numbers={"cosines": sizes.kept, "mixture_components": sizes.components},
            views=float(steps * self._records),
            steps=steps,
            max_workers=self._records,
        )

    def workload(self, denoiser: "Denoiser") -> base.Workload:
        """Return a chunk of records; see `Method.workload`."""
        from synth.moments.fit import ROWS

        return base.Workload("closed form", ROWS, ROWS)

    def fit(
        self,
        records: "Records",
        components: Sequence[Component],
        attempt: base.Attempt,
        meter: base.Meter,
        checkpoints: "StoragePath",
        collective: "Collective | None" = None,
        on_progress: base.OnProgress = lambda component, done, total: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> "dict[str, Tensor]":
        """Release what was reserved and return the model's weights; see `Method.fit`."""
        from privacy.collective import SingleProcess
        from synth.moments.fit import Fitting
        from synth.moments.releases import Releases

        releases = Releases(
            components,
            attempt,
            meter,
            checkpoints,
            collective or SingleProcess(),
            on_progress,
            stopping,
        )
        sizes = self.sizes(components)
        return Fitting(self._records, self._facts, sizes, records, releases, attempt).run()

    @staticmethod
    def denoiser(facts: base.PublicFacts, model: "ModelSettings") -> "Denoiser":
        """Return the mixture's posterior mean; see `Method.denoiser`."""
        from synth.moments.model import Exact, MomentsModel
        from synth.preconditioning import Denoiser

        return Denoiser(MomentsModel(facts.channels, facts.size, facts.classes), Exact())

    def describe(self) -> str:
        """Return the clause for the data set card."""
        return (
            "noisy moments: a mixture of Gaussians for each class, from noisy sums over all "
            "records, labelled by a classifier that noisy gradients taught"
        )


def _divided(sigma: float, shares: dict[str, float]) -> tuple[Component, ...]:
    """Return a component for each share of the budget that one release at sigma would take."""
    total = sum(shares.values())
    return tuple(
        Component(name, Gaussian(sigma * math.sqrt(T * total / share), T))
        for name, share in shares.items()
        for T in (_STEPS.get(name, 1),)
    )
