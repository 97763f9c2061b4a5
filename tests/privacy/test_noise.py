import copy
import math
import pickle

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from privacy.errors import InvalidRequest
from privacy.keystream import KEY_BYTES
from privacy.noise import SecureGaussian, normals, privatize

SIZE = 50_000


def normal_p_value(sample):
    return stats.kstest(sample, "norm").pvalue


@pytest.fixture
def sums():
    return {
        "weight": torch.arange(20_000.0, dtype=torch.float64).reshape(100, 200),
        "bias": torch.zeros(10_000, dtype=torch.float64),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
    }


def test_draws_are_standard_normal():
    drawn = SecureGaussian.seeded(1).standard_normal(SIZE)
    assert drawn.dtype == np.float64
    assert normal_p_value(drawn) > 1e-3
    # The fourth moment sees what a KS test does not; its variance is 96 / n.
    assert abs((drawn**4).mean() - 3) < 4 * math.sqrt(96 / SIZE)


@pytest.mark.parametrize("factor", [2 / 3, 3 / 2, 0.97, 1.03])
def test_the_check_detects_another_standard_deviation(factor):
    drawn = SecureGaussian.seeded(2).gaussian((SIZE,), factor * 5.0).numpy() / 5.0
    assert normal_p_value(drawn) < 1e-3


def test_draws_have_the_requested_standard_deviation():
    drawn = SecureGaussian.seeded(3).gaussian((SIZE // 50, 50), 82.5)
    assert drawn.shape == (SIZE // 50, 50)
    assert drawn.dtype == torch.float64
    assert normal_p_value(drawn.flatten().numpy() / 82.5) > 1e-3


def test_normals_equal_a_naive_implementation_in_high_precision():
    words = np.random.default_rng(0).integers(0, 2**64, (8, 3), dtype=np.uint64)
    words[:, 2] = 2**64 - 1
    with mpmath.workdps(40):
        pairs = [
            [
                (
                    mpmath.sqrt(-2 * mpmath.log(mpmath.mpf((int(u) >> 11) + 1) / 2**53)),
                    2 * mpmath.pi * (int(v) >> 11) / 2**53,
                )
                for u, v in zip(column[:4], column[4:], strict=True)
            ]
            for column in words.T
        ]
        g = [float(sum(r * mpmath.cos(a) for r, a in column) / 2) for column in pairs]
        h = [float(sum(r * mpmath.sin(a) for r, a in column) / 2) for column in pairs]
    assert np.allclose(normals(words), g + h, rtol=1e-12, atol=1e-14)


def test_each_of_the_four_normals_contributes():
    words = np.random.default_rng(1).integers(0, 2**64, (8, 1), dtype=np.uint64)
    for row in range(8):
        changed = words.copy()
        changed[row] ^= np.uint64(1 << 62)
        assert (normals(changed) != normals(words)).all()


def test_tails_reach_far_beyond_six_sigma():
    """The most extreme words: u = 2**-53 and an angle of 0, 1/4, 1/2 and 3/4 of a turn."""
    largest = 2 * math.sqrt(2 * 53 * math.log(2))
    assert largest > 17
    words = np.zeros((8, 4), np.uint64)
    words[4:] = np.array([0, 1, 2, 3], np.uint64) << np.uint64(62)
    reached = normals(words).reshape(2, 4)
    expected = largest * np.array([[1, 0, -1, 0], [0, 1, 0, -1]])
    assert np.allclose(reached, expected, rtol=1e-12, atol=1e-12)


def test_no_words_map_to_infinity():
    for u in (0, 2**64 - 1, 1 << 11, (1 << 11) - 1):
        words = np.full((8, 1), u, np.uint64)
        assert np.isfinite(normals(words)).all()


def test_draws_fill_float64():
    drawn = SecureGaussian.seeded(4).standard_normal(SIZE)
    assert (drawn.astype(np.float32) != drawn).mean() > 0.999
    assert len(np.unique(drawn)) == SIZE
    # Adding four leaves zeros at the end of small outputs, so the last bit is odd less than half
    # the time; after a detour through float32 it would never be.
    assert (drawn.view(np.int64) & 1).mean() > 0.25


@pytest.mark.parametrize("lag", [1, 2, 1 << 13, (1 << 14) - 1, 1 << 14])
def test_draws_are_independent_of_each_other(lag):
    drawn = SecureGaussian.seeded(5).standard_normal(3 << 14)
    for x in (drawn, drawn**2):
        r, p = stats.pearsonr(x[:-lag], x[lag:])
        assert p > 1e-3, r


def test_instances_are_independent():
    one, other = SecureGaussian(), SecureGaussian()
    x, y = one.standard_normal(SIZE), other.standard_normal(SIZE)
    assert not np.intersect1d(x, y).size
    assert stats.pearsonr(x, y).pvalue > 1e-7
    assert normal_p_value(x) > 1e-7
    assert not one.void


def test_global_seeds_do_not_change_the_draws():
    def drawn():
        torch.manual_seed(0)
        np.random.seed(0)
        return SecureGaussian().standard_normal(10)

    assert not np.intersect1d(drawn(), drawn()).size


def test_the_key_comes_from_the_operating_system(monkeypatch):
    monkeypatch.setattr("privacy.noise.os_key", lambda: bytes(KEY_BYTES))
    x, y = SecureGaussian().standard_normal(3), SecureGaussian().standard_normal(3)
    assert np.array_equal(x, y)


def test_a_seed_is_reproducible_and_void():
    x = SecureGaussian.seeded(6).standard_normal(100)
    assert np.array_equal(x, SecureGaussian.seeded(6).standard_normal(100))
    assert not np.intersect1d(x, SecureGaussian.seeded(7).standard_normal(100)).size
    assert SecureGaussian.seeded(6).void is True
    with pytest.raises(AttributeError):
        SecureGaussian.seeded(6).void = False


@pytest.mark.parametrize("seed", [-1, 1.0, True, None, 2**64])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(InvalidRequest, match="seed"):
        SecureGaussian.seeded(seed)


@pytest.mark.parametrize("noise", [SecureGaussian(), SecureGaussian.seeded(0)])
def test_noise_cannot_be_stored_and_drawn_again(noise, tmp_path):
    for duplicate in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="pickled"):
            duplicate(noise)
    with pytest.raises(TypeError, match="pickled"):
        torch.save({"noise": noise}, tmp_path / "state.pt")


@pytest.mark.parametrize("size", [0, 1, 2, 7, (1 << 14) - 1, (1 << 14) + 1])
def test_any_number_of_draws(size):
    noise = SecureGaussian.seeded(8)
    drawn = np.concatenate([noise.standard_normal(size), noise.standard_normal(1)])
    assert drawn.shape == (size + 1,)
    assert np.isfinite(drawn).all()
    assert len(np.unique(drawn)) == size + 1


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf, 5e-324, True, None])
def test_impossible_standard_deviations_are_refused(std):
    with pytest.raises(InvalidRequest, match="standard deviation"):
        SecureGaussian.seeded(0).gaussian((2,), std)


def test_privatize_adds_sigma_times_the_clip_norm_once(sums):
    before = {name: total.clone() for name, total in sums.items()}
    noisy = privatize(sums, clip_norm=0.25, noise_multiplier=18.28, noise=SecureGaussian.seeded(9))
    assert list(noisy) == list(sums)
    for name in sums:
        assert torch.equal(sums[name], before[name])
        assert noisy[name].dtype == torch.float64
        assert noisy[name].shape == sums[name].shape
        assert (noisy[name] != sums[name]).all()
    for name in ("weight", "bias"):
        drawn = ((noisy[name] - sums[name]) / (0.25 * 18.28)).flatten().numpy()
        assert normal_p_value(drawn) > 1e-3
        assert normal_p_value(drawn * math.sqrt(2)) < 1e-9  # as it were if drawn twice


def test_privatize_draws_independent_noise_for_every_coordinate(sums):
    noisy = privatize(sums, 1.0, 1.0, SecureGaussian.seeded(10))
    drawn = torch.cat([(noisy[name] - sums[name]).flatten() for name in ("bias", "scalar")])
    assert len(torch.unique(drawn)) == len(drawn)


def test_privatize_draws_fresh_noise_every_time(sums):
    noise = SecureGaussian.seeded(11)
    first, second = (privatize(sums, 1.0, 1.0, noise)["bias"] for _ in range(2))
    assert abs(stats.pearsonr(first, second).statistic) < 0.05


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 5e-324])
def test_privatize_refuses_impossible_parameters(sums, value):
    with pytest.raises(InvalidRequest, match="clip norm"):
        privatize(sums, value, 1.0, SecureGaussian.seeded(0))
    with pytest.raises(InvalidRequest, match="noise multiplier"):
        privatize(sums, 1.0, value, SecureGaussian.seeded(0))


def test_privatize_refuses_float32(sums):
    sums["bias"] = sums["bias"].float()
    with pytest.raises(InvalidRequest, match="'bias' must be float64"):
        privatize(sums, 1.0, 1.0, SecureGaussian.seeded(0))
