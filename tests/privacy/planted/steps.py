"""Bugs of the private step, each in the place of the part that it is a bug of.

The audit of the mechanism finds all of them.
"""

import dataclasses
from functools import lru_cache
from unittest import mock

import numpy as np
import torch

from privacy import clipping, dp_sgd
from privacy.audit.mechanism import StepPath, audit_mechanism
from privacy.audit.mechanism.audit import FEWEST_TRIALS
from privacy.audit.mechanism.runs import loaded_by, toy_size
from privacy.dp_sgd import DPSGD, PrivateGradient
from privacy.gradients import ENGINES
from privacy.gradients.base import trainable
from privacy.gradients.graph import FixedBatch
from privacy.keystream import KeyStream
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler
from privacy.records import LabelledRecords, OwnedRecords, own
from tests.privacy.planted.bug import Bug

ACCOUNTED = DPSGD(records=1000, sampling_probability=0.25, noise_multiplier=1.3, clip_norm=0.7)
TOYS = toy_size(ACCOUNTED.sampling_probability)

DEFAULT = StepPath().engine.name

LEVELS = "a record adds C / (q N) or nothing"
SENSITIVITY = "a record moves the gradient by at most C / (q N)"
NOT_FINITE = "a record that is not finite adds nothing"
VARIANCE = "noise has the variance that is accounted for"
EMPTY = "an empty batch is noised like any other"
FRESH = "noise is fresh"
INDEPENDENT = "noise is independent"
SIZES = "batch sizes are binomial"
STEPS = "two steps have different masks"
ATTEMPTS = "two attempts have different masks"
STARTS = "two starts have different masks"
RECORDS = "two records have different masks"
WORKERS = "batches do not depend on the workers"


# Gradients.


class WrongEngine:
    """An engine around the one that ships."""

    def __init__(self, shipped):
        self.name, self.shipped = shipped.name, shipped

    def sum_of_clipped(self, model, loss, records, clip_norm, micro_batch):
        return self.shipped.sum_of_clipped(model, loss, records, clip_norm, micro_batch)


class ClipPerView(WrongEngine):
    """Every view is a record of its own to the engine, as if a batch had been repeated K times."""

    def sum_of_clipped(self, model, loss, records, clip_norm, micro_batch):
        views = tuple(part.flatten(0, 1)[:, None] for part in records)
        micro_batch *= records[0].shape[1]
        return super().sum_of_clipped(model, loss, views, clip_norm, micro_batch)


class OneLayerUnclipped(WrongEngine):
    """The first layer is left out of clipping."""

    def sum_of_clipped(self, model, loss, records, clip_norm, micro_batch):
        clipped = super().sum_of_clipped(model, loss, records, clip_norm, micro_batch)
        whole = super().sum_of_clipped(model, loss, records, 1e9, micro_batch)
        first = next(iter(clipped))
        return {**clipped, first: whole[first]}


class ClipPerLayer(WrongEngine):
    """Every layer is clipped to C by itself, so that all of them together exceed it."""

    def sum_of_clipped(self, model, loss, records, clip_norm, micro_batch):
        sums = super().sum_of_clipped(model, loss, records, clip_norm, micro_batch)
        return {name: total * len(sums) ** 0.5 for name, total in sums.items()}


class NoGuardAgainstNaN(WrongEngine):
    """Records with a factor of zero are multiplied by it: 0 times NaN is NaN."""

    def sum_of_clipped(self, model, loss, records, clip_norm, micro_batch):
        with mock.patch.object(clipping, "_left_out", lambda numbers, factors: numbers):
            return super().sum_of_clipped(model, loss, records, clip_norm, micro_batch)


class PrivateMean(WrongEngine):
    """Gradients are clipped to the batch's own mean norm and scaled back to C."""

    def sum_of_clipped(self, model, loss, records, clip_norm, micro_batch):
        norms = [self._norm(model, loss, one) for one in records[0].split(1)]
        norms = [norm for norm in norms if 0 < norm < np.inf]
        mean = sum(norms) / len(norms) if norms else clip_norm
        sums = super().sum_of_clipped(model, loss, records, mean, micro_batch)
        return {name: total * (clip_norm / mean) for name, total in sums.items()}

    @staticmethod
    def _norm(model, loss, record):
        gradient = ENGINES["record"].sum_of_clipped(model, loss, (record,), 1e300, 1)
        return float(torch.cat([total.flatten() for total in gradient.values()]).norm())


class FilledUpByStaleRows(WrongEngine):
    """Rows that no record fills are what they were in the batch before, and are counted."""

    def sum_of_clipped(self, model, loss, records, clip_norm, micro_batch):
        def wrong(batch, records):
            for held, given in zip(batch.records, records, strict=True):
                held[: len(given)] = given
            batch.present[:] = True

        with mock.patch.object(FixedBatch, "fill", wrong):
            return super().sum_of_clipped(model, loss, records, clip_norm, micro_batch)


# Noise.


class Silent(SecureGaussian):
    """Noise that is forgotten."""

    def gaussian(self, shape, std):
        return super().gaussian(shape, std) * 0


class NoiseOnEveryRank(PrivateGradient):
    """Every worker takes itself for the first."""

    def __init__(self, dpsgd, sampler, noise, engine, collective, micro_batch):
        first = mock.Mock(rank=0, size=collective.size, sum=collective.sum)
        super().__init__(dpsgd, sampler, noise, engine, first, micro_batch)


class NoiseOverWorkers(PrivateGradient):
    """One worker adds its share of the noise and the others do not."""

    def __init__(self, dpsgd, sampler, noise, engine, collective, micro_batch):
        super().__init__(dpsgd, sampler, noise, engine, collective, micro_batch)
        sigma = dpsgd.noise_multiplier / collective.size
        self.dpsgd = dataclasses.replace(dpsgd, noise_multiplier=sigma)


class SigmaOfTheWrongStep(PrivateGradient):
    """Only the first step has the sigma that is accounted for; the next has that of another."""

    def __call__(self, step, *args):
        accounted = self.dpsgd
        sigma = accounted.noise_multiplier * (1.0 if step == 0 else 0.8)
        self.dpsgd = dataclasses.replace(accounted, noise_multiplier=sigma)
        try:
            return super().__call__(step, *args)
        finally:
            self.dpsgd = accounted


class SameForEveryLayer(SecureGaussian):
    """A stream that begins again with every tensor."""

    def gaussian(self, shape, std):
        if not hasattr(self, "_first"):
            self._first = super().gaussian(shape, 1.0)
        return self._first * std


class SameForEveryStart(SecureGaussian):
    """A stream whose key is the same in every process."""

    def __init__(self):
        super().__init__()
        self._stream = KeyStream(bytes(32))


# Batches.


class SameOnEveryRank(PoissonSampler):
    """A worker's records are numbered from zero: equal seeds on all ranks."""

    def mask(self, step, record_ids):
        return super().mask(step, np.arange(len(record_ids)))


class SameInEveryStep(PoissonSampler):
    def mask(self, step, record_ids):
        return super().mask(0, record_ids)


class SameInEveryAttempt(PoissonSampler):
    def mask(self, step, record_ids):
        first = PoissonSampler(self.key, 1, self.sampling_probability)
        return first.mask(step, record_ids)


class Shuffled(PoissonSampler):
    """Batches of one size out of a permutation of all records."""

    def mask(self, step, record_ids):
        seed = [*self.key, self.attempt, step]
        every = own(loaded_by(0, np.arange(TOYS)), self.key, 0, 1, TOYS).ids
        order = np.random.default_rng(seed).permutation(np.sort(every))
        return np.isin(record_ids, order[: round(self.sampling_probability * TOYS)])


def own_by_place(batches, key, rank, size, expected):
    """Every size-th record of those loaded: workers that load in other orders share some."""
    whole = LabelledRecords.concatenate(batches) if batches else own([], key, 0, 1, expected)
    places = np.arange(rank, len(whole.labels), size)
    values, labels = whole.values[places], whole.labels[places]
    return OwnedRecords(values, labels, places.astype(np.uint64), len(whole.labels))


def ids_by_place(batches, key, rank, size, expected):
    """Owners go by content, and coins by the place at which a worker holds a record."""
    owned = own(batches, key, rank, size, expected)
    return dataclasses.replace(owned, ids=np.arange(len(owned.ids)).astype(np.uint64))


def ids_cut_off(batches, key, rank, size, expected):
    """Ids of one bit, so that a record has the coins of half the others."""
    owned = own(batches, key, rank, size, expected)
    return dataclasses.replace(owned, ids=owned.ids >> np.uint64(63))


def ids_of_a_part(batches, key, rank, size, expected):
    """Records that differ where the digest does not look have one coin."""
    owned = own(batches, key, rank, size, expected)
    numbers = np.frombuffer(owned.values.tobytes(), "<u8")
    return dataclasses.replace(owned, ids=numbers // np.uint64(2))


class RealBatchAsDivisor(PrivateGradient):
    def __call__(self, step, model, loss, record_ids, gather):
        mean = super().__call__(step, model, loss, record_ids, gather)
        batch = whole_batch(self, step, record_ids)
        return {name: g * (self.dpsgd.expected_batch / max(batch, 1)) for name, g in mean.items()}


class EmptyBatchSkipped(PrivateGradient):
    def __call__(self, step, model, loss, record_ids, gather):
        mean = super().__call__(step, model, loss, record_ids, gather)
        if whole_batch(self, step, record_ids):
            return mean
        return {name: torch.zeros_like(g) for name, g in mean.items()}


def whole_batch(step_of, step, record_ids):
    """Count the batch over all workers."""
    mine = torch.tensor(float(step_of._sampler.mask(step, record_ids).sum()))
    return int(step_of._collective.sum({"batch": mine})["batch"])


class AccumulatedTwice(PrivateGradient):
    def __call__(self, *args):
        def twice(sums, part):
            clipping.add_to(sums, part)
            clipping.add_to(sums, part)

        with mock.patch.object(dp_sgd, "add_to", twice):
            return super().__call__(*args)


class AccumulatorNotCleared(PrivateGradient):
    """What was summed for one step is still there in the next."""

    def __call__(self, step, model, *args):
        if step == 0:
            self._left = clipping.zero_sums(trainable(model))
        with mock.patch.object(dp_sgd, "zero_sums", lambda like: self._left):
            return super().__call__(step, model, *args)


def part(**parts):
    return lambda path: dataclasses.replace(path, **parts)


def wrong_engine(wrapper):
    return lambda path: dataclasses.replace(path, engine=wrapper(path.engine))


# Bugs around an engine do not depend on it and are planted under the default. Those within one are
# planted under both ways of clipping: a vector for each record, and a matrix of all records.
OF_GRADIENTS = [
    ("clip per view", wrong_engine(ClipPerView), (LEVELS, SENSITIVITY)),
    ("no clip of one layer", wrong_engine(OneLayerUnclipped), (LEVELS, SENSITIVITY)),
    ("clip per layer", wrong_engine(ClipPerLayer), (LEVELS, SENSITIVITY)),
    ("private mean used for scaling: gradients", wrong_engine(PrivateMean), (LEVELS, SENSITIVITY)),
    ("double accumulation", part(step=AccumulatedTwice), (LEVELS, SENSITIVITY)),
    ("double accumulation: not cleared", part(step=AccumulatorNotCleared), (LEVELS,)),
]

WITHIN_ENGINES = [("NaN record taints the sum", wrong_engine(NoGuardAgainstNaN), (NOT_FINITE,))]

OF_FIXED_BATCHES = [
    (
        "rows that fill a micro-batch up are counted",
        wrong_engine(FilledUpByStaleRows),
        (LEVELS, SENSITIVITY),
    ),
]

OF_STEPS = [
    ("noise missing", part(noise=Silent), (VARIANCE, EMPTY, FRESH)),
    ("noise on every rank", part(step=NoiseOnEveryRank), (VARIANCE, EMPTY)),
    ("noise divided by the world size", part(step=NoiseOverWorkers), (VARIANCE, EMPTY)),
    ("sigma of the wrong step", part(step=SigmaOfTheWrongStep), (VARIANCE,)),
    ("equal seeds: noise of two layers", part(noise=SameForEveryLayer), (FRESH, INDEPENDENT)),
    ("equal seeds: noise of two starts", part(noise=SameForEveryStart), (FRESH, INDEPENDENT)),
    ("equal seeds: masks of two starts", part(key=lambda: bytes(32)), (STARTS,)),
    # Who owns a record is another worker in every start, so no two records are always a pair.
    ("equal seeds: masks of two ranks", part(sampler=SameOnEveryRank), (WORKERS,)),
    ("ids that are cut off", part(own=ids_cut_off), (SIZES,)),
    ("ids of a part of the content", part(own=ids_of_a_part), (RECORDS,)),
    ("equal seeds: masks of two steps", part(sampler=SameInEveryStep), (STEPS,)),
    ("equal seeds: masks of two attempts", part(sampler=SameInEveryAttempt), (ATTEMPTS,)),
    ("shuffled instead of Poisson", part(sampler=Shuffled), (SIZES,)),
    ("owners by place", part(own=own_by_place), (LEVELS, SENSITIVITY, WORKERS)),
    ("ids by place", part(own=ids_by_place), (WORKERS,)),
    ("real batch size as divisor", part(step=RealBatchAsDivisor), (LEVELS, EMPTY)),
    ("empty batch skipped", part(step=EmptyBatchSkipped), (EMPTY,)),
]


ALONE, MANY = (1,), (1, 2)  # workers


def findings(path, workers):
    """Audit a path and return the names of the checks that it failed."""
    trials = FEWEST_TRIALS * len(workers)
    audit = audit_mechanism(ACCOUNTED, views=2, trials=trials, workers=workers, path=path)
    failed = {check.name for check in audit.checks if not check.passed}
    above = {"lower bound" for bound in audit.bounds if bound.lower.epsilon > bound.claim}
    assert audit.broken == bool(failed | above)
    return failed | above


@lru_cache
def shipped_findings(engine, workers):
    return findings(StepPath(engine=ENGINES[engine]), workers)


def planted_findings(plant, engine, workers):
    return findings(plant(StepPath(engine=ENGINES[engine])), workers)


PLANTED = [
    # A worker computes gradients as it would alone.
    *((DEFAULT, ALONE, bug) for bug in OF_GRADIENTS),
    *((engine, ALONE, bug) for engine in ("record", "captured") for bug in WITHIN_ENGINES),
    *(("captured", ALONE, bug) for bug in OF_FIXED_BATCHES),
    *((DEFAULT, MANY, bug) for bug in OF_STEPS),
]

BUGS = [
    Bug(
        f"{name} ({engine})",
        lambda folder, of=(plant, engine, workers): planted_findings(*of),
        lambda folder, of=(engine, workers): shipped_findings(*of),
        caught_by,
    )
    for engine, workers, (name, plant, caught_by) in PLANTED
]
