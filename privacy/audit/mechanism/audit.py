"""The audit of one mechanism: lower bounds on its ε, and the laws that its steps have to follow."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from privacy.accounting import accountant
from privacy.accounting.base import round_up
from privacy.audit.distinguish import epsilon_lower_bound
from privacy.audit.mechanism import laws as noise_law
from privacy.audit.mechanism.contribution import levels, not_finite, sensitivity
from privacy.audit.mechanism.evidence import Evidence
from privacy.audit.mechanism.laws import batch_laws, same_for_any_workers
from privacy.audit.mechanism.results import Check, ComposedBound, MechanismAudit, judge
from privacy.audit.mechanism.runs import StepPath
from privacy.audit.mechanism.toy import LAYERS, Toy, toy_size
from privacy.dp_sgd import DPSGD
from privacy.errors import InvalidRequest
from privacy.validation import positive_int

FEWEST_TRIALS = 40
"""With fewer, broken noise and broken batches could pass for sound ones."""

_SHIPPED = StepPath()


def audit_mechanism(
    dpsgd: DPSGD,
    *,
    views: int,
    trials: int = 1000,
    steps: int = 2,
    workers: Sequence[int] = (1, 2),
    delta: float = 1e-5,
    confidence: float = 0.999,
    path: StepPath = _SHIPPED,
) -> MechanismAudit:
    """Run the private step many times on toy data and hold what it does against the claim.

    Two kinds of evidence. Lower bounds on ε, of one step and of a few composed: a canary whose
    gradient is clipped to norm C is there in half of the starts, and the likelihood ratio of what
    came out tells whether it was. And checks, far sharper, of the laws that the accounting
    supposes: the noise, the batches, and what one record can do. Only q, sigma and C are taken
    from `dpsgd` and no record of any data set is read: the outcome may be shown to anybody.

    Args:
        dpsgd: the mechanism that is charged for.
        views: K.
        trials: starts with the canary, and as many without it; at least 40 for each number of
            workers.
        steps: steps of a start, at least 2.
        workers: how many workers share the records; each number has its part of the trials.
        delta: at which ε is claimed and bounded.
        confidence: of each lower bound; the rest is its chance of a false alarm.
        path: the parts to run; those that ship if not said.

    Raises:
        InvalidRequest: if a count is too small, or delta or confidence is not in (0, 1).
    """
    _require(views, trials, steps, workers)
    size = toy_size(dpsgd.sampling_probability)
    toy = Toy(dataclasses.replace(dpsgd, records=size), views)
    evidence = Evidence.gather(path, toy, workers, trials, steps)
    bounds = tuple(
        ComposedBound(
            count,
            round_up(accountant("pld").epsilon([dpsgd.mechanism(count)], delta)),
            epsilon_lower_bound(
                evidence.scores(True, count), evidence.scores(False, count), delta, confidence
            ),
        )
        for count in (1, steps)
    )
    return MechanismAudit(
        engine=path.engine.name,
        sampling_probability=dpsgd.sampling_probability,
        noise_multiplier=dpsgd.noise_multiplier,
        clip_norm=dpsgd.clip_norm,
        delta=delta,
        records=size,
        views=views,
        workers=tuple(workers),
        bounds=bounds,
        checks=(*_by_chance(evidence), *_exact(evidence), *_of_one_record(path, toy, workers)),
    )


def _by_chance(evidence: Evidence) -> list[Check]:
    noise = evidence.noise
    return judge(
        [
            noise_law.variance("noise has the variance that is accounted for", noise),
            noise_law.variance(
                "an empty batch is noised like any other", evidence.noise_of_empty_batches
            ),
            noise_law.normality("noise is normal", noise),
            noise_law.independence("noise is independent", noise, LAYERS),
            *batch_laws(evidence.masks, evidence.toy.dpsgd.sampling_probability),
        ]
    )


def _exact(evidence: Evidence) -> list[Check]:
    outcomes = list(evidence.outcomes())
    moved = np.concatenate(list(evidence.steps_of_records.values()))
    return [
        Check("every gradient is finite", all(o.finite for o in outcomes), None, "all runs"),
        Check("workers hold the same gradient", all(o.agreed for o in outcomes), None, "all runs"),
        noise_law.freshness("noise is fresh", evidence.noise, LAYERS),
        levels("a record adds C / (q N) or nothing", moved, evidence.toy.dpsgd.records),
        same_for_any_workers("batches do not depend on the workers", evidence.masks),
    ]


def _of_one_record(path: StepPath, toy: Toy, workers: Sequence[int]) -> list[Check]:
    return [
        check(name, path, toy, workers)
        for name, check in (
            ("a record moves the gradient by at most C / (q N)", sensitivity),
            ("a record that is not finite adds nothing", not_finite),
        )
    ]


def _require(views: int, trials: int, steps: int, workers: Sequence[int]) -> None:
    positive_int("views", views)
    if positive_int("steps", steps) < 2:
        raise InvalidRequest("an audit needs at least 2 steps a start: masks and noise of two")
    if not workers or len(set(workers)) != len(workers):
        raise InvalidRequest("numbers of workers must be given once each, at least one of them")
    for size in workers:
        positive_int("workers", size)
    if positive_int("trials", trials) < FEWEST_TRIALS * len(workers):
        raise InvalidRequest(
            f"an audit needs at least {FEWEST_TRIALS} trials for each number of workers, found "
            f"{trials} for {len(workers)}"
        )
