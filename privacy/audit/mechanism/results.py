"""What an audit of the mechanism hands back; all of it is about toy data."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from privacy.audit.distinguish import LowerBound

FALSE_ALARM = 1e-6
"""Probability, at most, that any check of an audit fails a path that is sound."""


@dataclass(frozen=True)
class Law:
    """Tests of one thing that a sound path does by chance, not judged yet.

    Attributes:
        name: of the check it will be.
        p_values: of each test, against the law on both sides; at least one.
        detail: what was tested.
    """

    name: str
    p_values: np.ndarray
    detail: str


@dataclass(frozen=True)
class Check:
    """One thing that has to be as it is claimed.

    Attributes:
        name: what it is.
        passed: whether it is so.
        p_value: chance, at most, of looking this wrong by accident; None where nothing is left
            to chance.
        detail: what was compared and found.
    """

    name: str
    passed: bool
    p_value: float | None
    detail: str


def judge(laws: list[Law]) -> list[Check]:
    """Turn laws into checks that together fail a sound path with probability `FALSE_ALARM`.

    Bonferroni's correction twice: over the tests of a law, and over the laws. A NaN fails.
    """
    checks = []
    for law in laws:
        p = float(min(np.min(law.p_values) * np.size(law.p_values), 1.0))
        checks.append(Check(law.name, bool(p >= FALSE_ALARM / len(laws)), p, law.detail))
    return checks


@dataclass(frozen=True)
class ComposedBound:
    """ε of a number of steps: claimed, and shown by telling runs apart.

    Attributes:
        steps: how many were composed.
        claim: by privacy loss distributions, an upper bound.
        lower: what the runs show.
    """

    steps: int
    claim: float
    lower: LowerBound


@dataclass(frozen=True)
class MechanismAudit:
    """The verdict on a private step.

    Attributes:
        engine: name of the gradient engine.
        sampling_probability: q.
        noise_multiplier: sigma.
        clip_norm: C.
        delta: at which claims and bounds are stated.
        records: toy records, not those of any data set.
        views: K.
        workers: how many workers took the steps, one number after the other.
        bounds: for one step, and for all steps of a start.
        checks: laws that the step has to follow.
    """

    engine: str
    sampling_probability: float
    noise_multiplier: float
    clip_norm: float
    delta: float
    records: int
    views: int
    workers: tuple[int, ...]
    bounds: tuple[ComposedBound, ...]
    checks: tuple[Check, ...]

    @property
    def broken(self) -> bool:
        """Whether a check failed or a lower bound lies above its claim."""
        above = any(bound.lower.epsilon > bound.claim for bound in self.bounds)
        return above or not all(check.passed for check in self.checks)

    def to_record(self) -> dict[str, Any]:
        """Return the audit as plain JSON values."""
        return {"broken": self.broken, **asdict(self)}
