"""The parts that a private step is made of, as they ship."""

from collections.abc import Callable
from dataclasses import dataclass

from privacy.dp_sgd import PrivateGradient
from privacy.gradients import ENGINES, GradientEngine
from privacy.keystream import os_key
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler


@dataclass(frozen=True)
class StepPath:
    """What an audit runs: everything between a record and the noised mean gradient.

    The defaults are what training uses. Another part in the place of one of them is audited as if
    it shipped.

    Attributes:
        key: the secret of one start of a run, which all its workers share.
        sampler: from (key, attempt, q), the batches of one attempt.
        noise: a worker's noise stream, called anew on every worker of every start.
        engine: how clipped gradients are computed; audit the one that training chooses.
        step: as `PrivateGradient`, which puts the others together.
    """

    key: Callable[[], bytes] = os_key
    sampler: Callable[[bytes, int, float], PoissonSampler] = PoissonSampler
    noise: Callable[[], SecureGaussian] = SecureGaussian
    engine: GradientEngine = ENGINES["record"]
    step: Callable[..., PrivateGradient] = PrivateGradient
