"""The audit of one mechanism: lower bounds on its ε, and the laws that its steps have to follow."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from privacy.accounting import accountant
from privacy.accounting.base import round_up
from privacy.audit.distinguish import epsilon_lower_bound
from privacy.audit.mechanism import laws, runs
from privacy.audit.mechanism.laws import Check, ComposedBound, MechanismAudit
from privacy.audit.mechanism.runs import LAYERS, Evidence, Outcome, Path, Start, Toy, run
from privacy.dp_sgd import DPSGD
from privacy.errors import InvalidRequest
from privacy.validation import positive_int

_ROUNDING = 1e-6

# The canary is in no batch, and its bound not tried, in one audit of 10**8.
_RECORDS, _STEPS, _Q = 8, 8, 0.9


def levels(name: str, units: np.ndarray, norms: np.ndarray) -> Check:
    """Check that every record moves its coordinates by exactly its clipped norm or not at all.

    `units` holds steps without noise, [..., layers, width], in units of C / (q N); the first
    coordinates belong to records of these `norms` before the clip, in units of C, and nothing may
    move the others.
    """
    own, idle = np.split(units, [len(norms)], axis=-1)
    own = own / np.minimum(norms, 1.0)
    # A record is in the batch, in all of its layers, or it is not.
    taken = own[..., :1, :] > 0.5
    off = max(float(np.abs(own - taken).max()), float(np.abs(idle).max()))
    detail = f"steps of single records lie between {own.min():.6g} and {own.max():.6g} of theirs"
    return Check(name, off <= _ROUNDING, None, detail)


def sensitivity(name: str, path: Path, toy: Toy, workers: Sequence[int]) -> Check:
    """Check how far the whole gradient moves when the canary comes: to its bound, or not at all.

    Both runs have the same masks and the same noise, so all of the difference is due to the record,
    also through its effect on others. The canary is longer than C, so in a batch it has to move the
    sum by all of its bound: less would mean that its weight depends on the rest of the batch.
    """
    again = _FixedSeed.of(path, toy)
    runs = [(again.run(size), again.run(size, canary=False)) for size in workers]
    moved = again.toy.in_units(np.stack([here.gradients - away.gradients for here, away in runs]))
    lengths = np.sqrt(np.square(moved).sum(axis=(-1, -2)) / LAYERS)
    taken = lengths > 0.5
    # A canary that was in no batch has not tried its bound.
    passed = bool(taken.any() and np.abs(lengths - taken).max() <= _ROUNDING)
    detail = f"the canary moved it by {lengths.min():.9g} to {lengths.max():.9g} of the bound"
    return Check(name, passed, None, detail)


def not_finite(name: str, path: Path, toy: Toy, workers: Sequence[int]) -> Check:
    """Check that a NaN or an infinity in one view leaves a step as if the record were absent.

    Up to rounding, as sums over batches of other sizes are added up in another order. A step that
    stops reveals the record as well.
    """
    again = _FixedSeed.of(path, toy)
    tainted = []
    for size in workers:
        expected = again.run(size, canary=False)
        for bad in (math.nan, math.inf, -math.inf):
            try:
                found = again.run(size, bad=bad)
            except Exception as error:  # any error would stop the run
                tainted.append(f"{bad} over {size} workers ({type(error).__name__})")
                continue
            moved = np.abs(again.toy.in_units(found.gradients - expected.gradients)).max()
            if not (found.finite and moved <= _ROUNDING):
                tainted.append(f"{bad} over {size} workers")
    detail = f"the step changed for {', '.join(tainted) or 'none of NaN, inf and -inf'}"
    return Check(name, not tainted, None, detail)


@dataclass(frozen=True)
class _FixedSeed:
    """Runs that can be made again: one seeded start, and most of a few records in every batch."""

    path: Path
    toy: Toy
    start: Start

    @classmethod
    def of(cls, path: Path, toy: Toy) -> Self:
        dpsgd = dataclasses.replace(toy.dpsgd, records=_RECORDS, sampling_probability=_Q)
        return cls(path, dataclasses.replace(toy, dpsgd=dpsgd), Start(path.key(), seed=0))

    def run(self, workers: int, canary: bool = True, bad: float | None = None) -> Outcome:
        everyone = np.arange(_RECORDS)
        return run(
            self.path,
            self.toy,
            workers=workers,
            starts=[self.start],
            steps=_STEPS,
            present=everyone if canary else np.delete(everyone, self.toy.canary),
            bad=bad,
        )


# With fewer, broken noise and broken batches could pass for sound ones.
FEWEST_TRIALS = 40

_SHIPPED = runs.StepPath()


def audit_mechanism(
    dpsgd: DPSGD,
    *,
    views: int,
    trials: int = 1000,
    steps: int = 2,
    workers: Sequence[int] = (1, 2),
    delta: float = 1e-5,
    confidence: float = 0.999,
    path: Path = _SHIPPED,
) -> MechanismAudit:
    """Run the private step many times on toy data and compare what it does with the claim.

    Two kinds of evidence. Lower bounds on ε, of one step and of a few composed: a canary whose
    gradient is clipped to norm C is there in half of the starts, and the likelihood ratio of the
    output says whether it was. And checks, far sharper, of the laws that the accounting supposes:
    the noise, the batches, and the effect of one record. Only q, sigma and C are taken from `dpsgd`
    and no record of any data set is read: the outcome may be shown to anybody.

    Args:
        views: K.
        trials: starts with the canary, and as many without it; at least FEWEST_TRIALS for each
            number of workers.
        steps: steps of a start, at least 2.
        workers: how many workers share the records; each number has its part of the trials.
        delta: at which ε is claimed and bounded.
        confidence: of each lower bound; the rest is its chance of a false alarm.
        path: the parts to run; by default those that ship.

    Raises InvalidRequest if a count is too small, or delta or confidence is not in (0, 1).
    """
    _require(views, trials, steps, workers)
    size = runs.toy_size(dpsgd.sampling_probability)
    toy = Toy(dataclasses.replace(dpsgd, records=size), views)
    evidence = Evidence.gather(path, toy, workers, trials, steps)
    return MechanismAudit(
        engine=path.engine.name,
        sampling_probability=dpsgd.sampling_probability,
        noise_multiplier=dpsgd.noise_multiplier,
        clip_norm=dpsgd.clip_norm,
        delta=delta,
        records=size,
        views=views,
        workers=tuple(workers),
        bounds=tuple(_bound(evidence, count, delta, confidence) for count in (1, steps)),
        checks=(
            *_by_chance(evidence),
            *_exact(evidence),
            sensitivity("a record moves the gradient by at most C / (q N)", path, toy, workers),
            not_finite("a record that is not finite adds nothing", path, toy, workers),
        ),
    )


def _bound(evidence: Evidence, steps: int, delta: float, confidence: float) -> ComposedBound:
    claim = accountant("pld").epsilon([evidence.toy.dpsgd.mechanism(steps)], delta)
    present, absent = (evidence.scores(canary, steps) for canary in (True, False))
    lower = epsilon_lower_bound(present, absent, delta, confidence)
    return ComposedBound(steps, round_up(claim), lower)


def _by_chance(evidence: Evidence) -> list[Check]:
    noise, of_empty = evidence.noise, evidence.noise_of_empty_batches
    q = evidence.toy.dpsgd.sampling_probability
    return laws.judge(
        [
            laws.variance("noise has the variance that is accounted for", noise),
            laws.variance("an empty batch is noised like any other", of_empty),
            laws.normality("noise is normal", noise),
            laws.independence("noise is independent", noise, LAYERS),
            *laws.batch_laws(evidence.masks, evidence.masks_of_restarts, q),
        ]
    )


def _exact(evidence: Evidence) -> list[Check]:
    outcomes = list(evidence.outcomes())
    moved = np.concatenate(list(evidence.steps_of_records.values()))
    return [
        Check("every gradient is finite", all(o.finite for o in outcomes), None, "all runs"),
        Check("workers hold the same gradient", all(o.agreed for o in outcomes), None, "all runs"),
        laws.freshness("noise is fresh", evidence.noise, LAYERS),
        levels("a record adds C / (q N) or nothing", moved, evidence.toy.norms),
        laws.same_for_any_workers("batches do not depend on the workers", evidence.masks),
    ]


def _require(views: int, trials: int, steps: int, workers: Sequence[int]) -> None:
    positive_int("views", views)
    if positive_int("steps", steps) < 2:
        raise InvalidRequest("an audit needs at least 2 steps a start: masks and noise of two")
    if not workers or len(set(workers)) != len(workers):
        raise InvalidRequest("numbers of workers must be given once each, at least one of them")
    for size in workers:
        positive_int("workers", size)
    least = FEWEST_TRIALS * len(workers)
    if positive_int("trials", trials) < least:
        raise InvalidRequest(
            f"an audit over {workers} workers needs {least} trials, found {trials}"
        )
