"""The laws of releases hold for what they are laws of, as often as they say, and for nothing else.

tests/privacy/planted/releases.py shows what the audits of releases catch.
"""

import math

import numpy as np
import pytest
from scipy import stats

from privacy.audit.mechanism import releases
from privacy.audit.mechanism.laws import judge
from privacy.audit.mechanism.releases import ToyImages, audit_counts, hides_a_record
from privacy.mechanisms import DiscreteLaplace, Gaussian
from privacy.noisy_counts import noisy_counts

SHAPE = (40, 4, 48)


def clamped(rng, shape=SHAPE):
    return np.maximum(rng.standard_normal(shape), 0)


def discrete_laplace(rng, scale, shape):
    """By another way than what ships: the difference of two geometric numbers."""
    a = math.exp(-1 / scale)
    return rng.geometric(1 - a, shape) - rng.geometric(1 - a, shape)


def failed(laws):
    return {check.name.partition(": ")[2] for check in judge(laws) if not check.passed}


class TestClampedNoise:
    def test_p_values_are_honest(self):
        rng = np.random.default_rng(0)
        found = np.array(
            [
                [check.p_value for check in judge(releases._clamped_noise(clamped(rng)))]
                for _ in range(200)
            ]
        )
        for column in found.T:
            below = int((column < 0.05).sum())
            assert stats.binomtest(below, len(column), 0.06, alternative="greater").pvalue > 1e-3
            assert column.min() > 1e-5

    @pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
    def test_another_spread_is_noticed(self, factor):
        noise = factor * clamped(np.random.default_rng(1))
        assert "noise has the variance that is accounted for" in failed(
            releases._clamped_noise(noise)
        )

    def test_a_number_without_noise_is_noticed(self):
        noise = clamped(np.random.default_rng(2))
        noise[:, 3, 7] = 0
        assert "every number is noised" in failed(releases._clamped_noise(noise))

    def test_another_shape_is_noticed(self):
        uniform = np.random.default_rng(3).uniform(-math.sqrt(3), math.sqrt(3), SHAPE)
        assert "noise is normal" in failed(releases._clamped_noise(np.maximum(uniform, 0)))

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_noise_that_follows_itself_is_noticed(self, axis):
        noise = clamped(np.random.default_rng(4))
        repeated = np.repeat(np.take(noise, range(0, SHAPE[axis], 2), axis=axis), 2, axis=axis)
        assert "noise is independent" in failed(releases._clamped_noise(repeated))


class TestDiscreteLaplace:
    @pytest.mark.parametrize("scale", [0.7, 4.0, 60.0])
    def test_p_values_are_honest(self, scale):
        rng = np.random.default_rng(5)
        found = np.array(
            [releases._fit(discrete_laplace(rng, scale, 300), scale) for _ in range(400)]
        )
        below = int((found < 0.05).sum())
        assert stats.binomtest(below, len(found), 0.06, alternative="greater").pvalue > 1e-3
        assert found.min() > 1e-5

    @pytest.mark.parametrize("factor", [0.5, 0.7, 1.5])
    def test_another_scale_is_noticed(self, factor):
        noise = discrete_laplace(np.random.default_rng(6), factor * 4.0, 1200)
        assert releases._fit(noise, 4.0) < 1e-7

    def test_noise_rounded_towards_zero_is_noticed(self):
        noise = np.trunc(np.random.default_rng(7).laplace(scale=4.0, size=1200))
        assert releases._fit(noise, 4.0) < 1e-7


class TestToyImages:
    toy = ToyImages(3.0, records=96)

    def test_norms_are_close_to_the_clip_norm_on_both_sides(self):
        images, _ = self.toy.images(np.arange(96))
        norms = np.linalg.norm(images[:8].reshape(8, -1) / 255, axis=1) / self.toy.clip_norm
        assert norms == pytest.approx([0.99, 1.5, 3.0, 1.01] * 2, rel=1e-3)
        assert norms[7] > 1 > norms[0]
        assert not images[8:].any()

    def test_every_channel_counts(self):
        images, _ = self.toy.images(np.arange(96))
        channels = np.square(images[:8] / 255.0).sum(axis=(1, 2))
        assert (channels / channels.sum(axis=1, keepdims=True)).min() > 0.3

    def test_who_is_absent_is_black_and_of_no_class_in_particular(self):
        whole, labels = self.toy.images(np.arange(96))
        without, others = self.toy.images(np.delete(np.arange(96), 7))
        assert (np.flatnonzero((whole != without).any(axis=(1, 2, 3))) == [7]).all()
        assert (np.flatnonzero(labels != others) == [7]).all()


def release(present, scale, of=lambda counts: counts):
    """Count the records of two kinds, as two steps: one count, then two."""
    steps = [np.array([len(present)]), np.bincount(present % 2, minlength=2)]
    mechanism = DiscreteLaplace(scale)
    return [
        np.array([c.value for c in noisy_counts(of(counts).tolist(), 1, mechanism)])
        for counts in steps
    ]


class TestCounts:
    def test_what_is_right_passes(self):
        checks = audit_counts("counts", release, DiscreteLaplace(3.0, 2))
        assert [check.name for check in checks if not check.passed] == []
        assert len(checks) == 4

    def test_a_step_that_is_not_charged_is_found(self):
        checks = audit_counts("counts", release, DiscreteLaplace(3.0, 1))
        assert [c.name for c in checks if not c.passed] == ["counts: every release is charged"]

    def test_a_record_that_counts_twice_is_found(self):
        checks = audit_counts(
            "counts", lambda *of: release(*of, lambda counts: 2 * counts), DiscreteLaplace(3.0, 2)
        )
        assert "counts: a record moves the counts by 1" in {c.name for c in checks if not c.passed}


@pytest.mark.parametrize(("distance", "passes"), [(0.2, True), (6.0, False)])
def test_scores_that_lie_too_far_apart_refute_the_claim(distance, passes):
    rng = np.random.default_rng(8)
    scores = [rng.standard_normal(200) + distance, rng.standard_normal(200)]
    assert hides_a_record("x", scores, Gaussian(5.0), 1e-5).passed is passes
