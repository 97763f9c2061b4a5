"""Bugs around the step: a worker's own start, its keys and charges, and the parts that it calls.

Each is planted in the code that ships, which then runs from `Attempt.start` to its last step; the
audit of the mechanism finds all of them.
"""

from contextlib import contextmanager
from functools import lru_cache
from unittest import mock

import torch

import privacy.clipping
import privacy.dp_sgd
import privacy.poisson
from pipeline.audit.start import WorkerStart, _Meter
from privacy.audit.mechanism import audit_mechanism
from privacy.audit.mechanism.audit import FEWEST_TRIALS
from privacy.keystream import derive, words_at
from privacy.noise import SecureGaussian, noise_like
from privacy.poisson import PoissonSampler
from synth.methods.base import Attempt
from synth.methods.diffusion import PRIVATE, WARMUP
from synth.training import Trainer
from tests.privacy.planted import steps
from tests.privacy.planted.bug import Bug

UNPAID = "used without a charge"


@contextmanager
def replaced(of, name, wrong):
    with mock.patch.object(of, name, wrong):
        yield


# Keys, seeds and attempts.


def run_key_for_every_start():
    """The masks' key is the run's, as if a retry always had another number."""

    def start(cls, number, run_key, seed, collective):
        return cls(collective.broadcast_from_rank0(number), run_key, seed)

    return replaced(Attempt, "start", classmethod(start))


def noise_from_the_run_key():
    """Two processes that both take themselves for attempt 1 draw the same noise."""

    def noise(self):
        # Of the number alone: the key of a start is fresh.
        return SecureGaussian.seeded(self.number)

    return replaced(Attempt, "noise", noise)


def attempt_not_in_the_key():
    def without(key, domain, attempt, step):
        return derive(key, domain, step)

    return replaced(privacy.poisson, "derive", without)


def one_coin_for_all_records():
    """The id does not enter the coin: all records are drawn, or none is."""
    return replaced(privacy.poisson, "words_at", lambda key, ids: words_at(key, ids * 0))


# Clipping.


def clip_beyond_c():
    """A norm is compared with C + 5 %, as a tolerance for rounding that was meant well."""
    shipped = privacy.clipping.clip_factors

    def wrong(norms, clip_norm):
        return torch.where(norms <= 1.05 * clip_norm, 1.0, shipped(norms, clip_norm))

    return replaced(privacy.clipping, "clip_factors", wrong)


def norm_of_the_first_parameter():
    """Everything is scaled by what the norm of the first parameter asks for."""

    def wrong(sums, gradients, clip_norm, present=None):
        first = next(iter(gradients.values()))
        norms = first.flatten(1).norm(dim=1)
        for name, gradient in gradients.items():
            factors = privacy.clipping.clip_factors(norms, clip_norm)
            sums[name] += privacy.clipping.sum_clipped(gradient, factors)

    return replaced(privacy.clipping, "add_clipped", wrong)


def one_parameter_left_out_of_the_norm():
    def wrong(sums, gradients, clip_norm, present=None):
        *measured, _ = gradients.values()
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in measured]).norm(dim=0)
        for name, gradient in gradients.items():
            factors = privacy.clipping.clip_factors(norms, clip_norm)
            sums[name] += privacy.clipping.sum_clipped(gradient, factors)

    return replaced(privacy.clipping, "add_clipped", wrong)


def clip_to_twice_c_where_it_is_far_above():
    """Only records between C and 2 C are clipped as they should be."""
    shipped = privacy.clipping.clip_factors

    def wrong(norms, clip_norm):
        return torch.where(norms > 2 * clip_norm, 2.0, 1.0) * shipped(norms, clip_norm)

    return replaced(privacy.clipping, "clip_factors", wrong)


# Noise.


def noise_on_some_parameters():
    def wrong(sums, clip_norm, sigma, noise):
        drawn = noise_like(sums, clip_norm, sigma, noise)
        last = list(drawn)[-1]
        return {**drawn, last: torch.zeros_like(drawn[last])}

    return replaced(privacy.dp_sgd, "noise_like", wrong)


@contextmanager
def noise_scaled_by_the_batch():
    """Noise follows the records that came, as it would if a mean were noised and not a sum."""
    mask, shipped, came = PoissonSampler.mask, privacy.dp_sgd.add_noise, []

    def noted(self, step, record_ids):
        chosen = mask(self, step, record_ids)
        came.append(chosen.sum() / (self.sampling_probability * len(chosen)))
        return chosen

    def scaled(sums, drawn):
        return shipped(sums, {name: noise * came[-1] for name, noise in drawn.items()})

    with (
        mock.patch.object(PoissonSampler, "mask", noted),
        mock.patch.object(privacy.dp_sgd, "add_noise", scaled),
    ):
        yield


def noise_of_the_last_step_again():
    """Every other step is noised with what the step before had drawn."""
    kept = {}

    def wrong(sums, clip_norm, sigma, noise):
        if kept.get("from") is noise:
            kept["from"] = None
        else:
            kept.update({"from": noise, "drawn": noise_like(sums, clip_norm, sigma, noise)})
        return kept["drawn"]

    return replaced(privacy.dp_sgd, "noise_like", wrong)


# Charges.


def warmup_on_credit():
    """The warm-up is never charged."""
    shipped = _Meter.charge

    def wrong(self, component, count):
        return "" if component == WARMUP else shipped(self, component, count)

    return replaced(_Meter, "charge", wrong)


@contextmanager
def charged_when_it_is_over():
    """Every step is charged after it was taken."""
    shipped = Trainer._descend

    def on_credit(self):
        return 0 if self._step else self.meter.remaining(PRIVATE)

    def descend_and_pay(self, gradient):
        shipped(self, gradient)
        self.meter.charge(PRIVATE, 1)

    with (
        mock.patch.object(Trainer, "_charge_block", on_credit),
        mock.patch.object(Trainer, "_descend", descend_and_pay),
    ):
        yield


PLANTED = [
    ("two starts share their masks", run_key_for_every_start, (steps.STARTS,)),
    ("two starts with equal noise", noise_from_the_run_key, (steps.FRESH, steps.INDEPENDENT)),
    ("attempt not mixed into the key", attempt_not_in_the_key, (steps.ATTEMPTS,)),
    ("one coin for all records", one_coin_for_all_records, (steps.RECORDS, steps.SIZES)),
    ("clip beyond C", clip_beyond_c, (steps.LEVELS, steps.SENSITIVITY)),
    ("norm of the first parameter only", norm_of_the_first_parameter, (steps.LEVELS,)),
    ("one parameter left out of the norm", one_parameter_left_out_of_the_norm, (steps.LEVELS,)),
    ("clip at 2 C where it is far above", clip_to_twice_c_where_it_is_far_above, (steps.LEVELS,)),
    ("noise on some parameters only", noise_on_some_parameters, (steps.VARIANCE, steps.EMPTY)),
    ("noise scaled by the batch", noise_scaled_by_the_batch, (steps.FRESH,)),
    ("noise of the last step again", noise_of_the_last_step_again, (steps.FRESH,)),
    ("warm-up not charged", warmup_on_credit, (f"{WARMUP} {UNPAID}",)),
    ("steps charged when they are over", charged_when_it_is_over, (f"{PRIVATE} {UNPAID}",)),
]


def findings(warmup=False):
    """Audit what a worker does from its start, and return the names of what was found wrong."""
    path = WorkerStart(views=1, warmup=warmup)
    audit = audit_mechanism(steps.ACCOUNTED, views=1, trials=FEWEST_TRIALS, workers=(1,), path=path)
    failed = {check.name for check in audit.checks if not check.passed}
    return failed | {f"{component} {UNPAID}" for component in path.unpaid}


@lru_cache
def shipped_findings(warmup):
    return findings(warmup)


def planted_findings(plant, warmup):
    with plant():
        return findings(warmup)


BUGS = [
    Bug(
        f"{name} (a worker's start)",
        lambda folder, plant=plant: planted_findings(plant, plant is warmup_on_credit),
        lambda folder, plant=plant: shipped_findings(plant is warmup_on_credit),
        caught_by,
    )
    for name, plant, caught_by in PLANTED
]
