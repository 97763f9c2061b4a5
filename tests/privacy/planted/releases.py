"""Bugs of what is charged beside the steps: the warm-up's class sums and paid counts.

The audit of the mechanism finds all of them.
"""

import dataclasses
from functools import lru_cache
from unittest import mock

import numpy as np
import torch

import pipeline.metrics
import privacy.class_sums
from pipeline.audit.counts import PaidCounts
from pipeline.audit.start import WorkerStart
from pipeline.plan import ACCURACY, CLASS_COUNTS
from privacy.audit.mechanism.releases import audit_class_means
from privacy.ledger.records import Component
from privacy.mechanisms import DiscreteLaplace, Gaussian
from privacy.noise import SecureGaussian, noise_like, privatize
from privacy.noisy_counts import NoisyCount, noisy_counts
from tests.privacy.planted.bug import Bug

WARMUP = Gaussian(3.0)
MOVED = "warm-up: a record adds its clipped norm to its class"
EVERY = "warm-up: every number is noised"
VARIANCE = "warm-up: noise has the variance that is accounted for"
FRESH = "warm-up: noise is fresh"
INDEPENDENT = "warm-up: noise is independent"


def of_norms(measure, scale=1.0):
    """Clip an image by another measure than its norm over all channels."""
    shipped = torch.linalg.vector_norm

    def wrong(x, dim=None, **options):
        return scale * shipped(measure(x), dim=1) if dim == 1 else shipped(x, dim=dim, **options)

    return mock.patch.object(privacy.class_sums.torch.linalg, "vector_norm", wrong)


def norm_of_the_first_channel():
    return of_norms(lambda x: x[:, : x.shape[1] // 3])


def clip_beyond_c():
    shipped = privacy.class_sums.clip_factors

    def wrong(norms, clip_norm):
        return torch.where(norms <= 1.05 * clip_norm, 1.0, shipped(norms, clip_norm))

    return mock.patch.object(privacy.class_sums, "clip_factors", wrong)


class DividedByTrueCounts:
    """The mean is taken over the records that a class has."""

    def __enter__(self):
        shipped = privacy.class_sums.noisy_class_sums

        def noted(images, labels, classes, **options):
            counts = torch.bincount(labels, minlength=classes).clamp(min=1)
            # What the caller divides by is put right.
            share = len(labels) / classes / counts
            return shipped(images, labels, classes, **options) * share[:, None, None, None]

        self.patch = mock.patch.object(privacy.class_sums, "noisy_class_sums", noted)
        self.patch.start()

    def __exit__(self, *error):
        self.patch.stop()


def noising(change):
    """Let `change(sums, C, sigma, noise)` noise the class sums."""
    return mock.patch.object(privacy.class_sums, "privatize", change)


def on_the_first_channel(sums, clip_norm, sigma, noise):
    noised = privatize(sums, clip_norm, sigma, noise)
    return {n: torch.cat([noised[n][:, :1], sums[n][:, 1:]], dim=1) for n in sums}


def without_c(sums, clip_norm, sigma, noise):
    return privatize(sums, 1.0, sigma, noise)


def one_draw_for_all_classes(sums, clip_norm, sigma, noise):
    drawn = noise_like({n: s[:1] for n, s in sums.items()}, clip_norm, sigma, noise)
    return {n: s + drawn[n] for n, s in sums.items()}


def once_a_run(sums, clip_norm, sigma, noise):
    return privatize(sums, clip_norm, sigma, SecureGaussian.seeded(5))


OF_MEANS = [
    ("warm-up: norm of the first channel only", norm_of_the_first_channel, (MOVED,)),
    ("warm-up: clip beyond C", clip_beyond_c, (MOVED,)),
    ("warm-up: divided by the true counts", DividedByTrueCounts, (MOVED,)),
    ("warm-up: noise on one channel", lambda: noising(on_the_first_channel), (EVERY,)),
    ("warm-up: sigma without C", lambda: noising(without_c), (VARIANCE,)),
    ("warm-up: one draw for all classes", lambda: noising(one_draw_for_all_classes), (FRESH,)),
    ("warm-up: two starts with equal noise", lambda: noising(once_a_run), (FRESH, INDEPENDENT)),
]


# Paid counts.

SCALE = 2.0
PLAN = (
    Component(ACCURACY, DiscreteLaplace(SCALE, 2)),
    Component(CLASS_COUNTS, DiscreteLaplace(SCALE)),
)
CHARGED = f"{ACCURACY}: every release is charged"
BY_ONE = f"{ACCURACY}: a record moves the counts by 1"
CLASS_BY_ONE = f"{CLASS_COUNTS}: a record moves the counts by 1"
OF_SCALE = f"{ACCURACY}: noise is of the scale that is charged"
CLASS_OF_SCALE = f"{CLASS_COUNTS}: noise is of the scale that is charged"
UNCORRELATED = f"{CLASS_COUNTS}: noise is independent"


def counting(change):
    """Let `change(counts, sensitivity, mechanism, confidence)` release counts."""
    return mock.patch.object(pipeline.metrics, "noisy_counts", change)


def sensitivity_of_a_half(counts, sensitivity, mechanism, confidence=0.95):
    """Half of the noise, as if a record were removed by half."""
    half = DiscreteLaplace(mechanism.noise_multiplier / 2, mechanism.steps)
    return noisy_counts(counts, sensitivity, half, confidence)


def doubles_are_one_record(counts, sensitivity, mechanism, confidence=0.95):
    """A count goes up in pairs: two records that are equal count when both are there."""
    return noisy_counts([count // 2 * 2 for count in counts], sensitivity, mechanism, confidence)


def one_draw_for_all_counts(counts, sensitivity, mechanism, confidence=0.95):
    (drawn,) = noisy_counts([10**6], sensitivity, mechanism, confidence)
    return tuple(dataclasses.replace(drawn, value=count + drawn.value - 10**6) for count in counts)


def every_classifiers_confusion():
    """A class's images are counted once for every classifier that saw them."""
    shipped = pipeline.metrics.noisy_counts

    def wrong(counts, *settings):
        return shipped([2 * count for count in counts] if len(counts) > 1 else counts, *settings)

    return counting(wrong)


def rounded_noise(counts, sensitivity, mechanism, confidence=0.95):
    """Continuous noise, rounded towards zero: zero comes twice as often as it may."""
    rng = np.random.default_rng()
    drawn = rng.laplace(scale=mechanism.noise_multiplier, size=len(counts))
    return tuple(
        NoisyCount(int(count + int(x)), 0, 0, confidence)
        for count, x in zip(counts, drawn, strict=True)
    )


OF_COUNTS = [
    ("paid counts: a sensitivity of 1/2", lambda: counting(sensitivity_of_a_half), (OF_SCALE,)),
    ("paid counts: doubles are one record", lambda: counting(doubles_are_one_record), (BY_ONE,)),
    ("paid counts: one draw for all", lambda: counting(one_draw_for_all_counts), (UNCORRELATED,)),
    ("paid counts: counted by every classifier", every_classifiers_confusion, (CLASS_BY_ONE,)),
    (
        "paid counts: noise that is rounded to zero",
        lambda: counting(rounded_noise),
        (CLASS_OF_SCALE,),
    ),
]


def means_findings():
    path = WorkerStart(views=1, warmup=True)
    return failed(audit_class_means(path.means, WARMUP, 1e-5, path.key))


def counts_findings(plan=PLAN):
    return failed(PaidCounts(("logreg", "mlp"), plan).checks())


def failed(checks):
    return {check.name for check in checks if not check.passed}


shipped_means, shipped_counts = lru_cache(means_findings), lru_cache(counts_findings)


def planted_findings(plant, audit):
    with plant():
        return audit()


def bugs(planted, audit, shipped):
    return [
        Bug(
            name,
            lambda folder, plant=plant: planted_findings(plant, audit),
            lambda folder: shipped(),
            caught_by,
        )
        for name, plant, caught_by in planted
    ]


ONE_CHARGE = (Component(ACCURACY, DiscreteLaplace(SCALE)),)

BUGS = [
    *bugs(OF_MEANS, means_findings, shipped_means),
    *bugs(OF_COUNTS, counts_findings, shipped_counts),
    Bug(
        "paid counts: two classifiers for one charge",
        lambda folder: counts_findings(ONE_CHARGE),
        lambda folder: shipped_counts(),
        (CHARGED,),
    ),
]
