import math

import numpy as np
import pytest
import torch
from scipy import stats

from synth.records import normal, uniform

WORD = (1 << 64) - 1
GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SEEDS = [0, 1, -1, 7, -(1 << 63), (1 << 63) - 1, 0x0123456789ABCDEF]
MANY = 1 << 20


def mix(z):
    """SplitMix64's finaliser in whole numbers (Steele et al. 2014)."""
    z = (z ^ (z >> 30)) * FIRST & WORD
    z = (z ^ (z >> 27)) * SECOND & WORD
    return z ^ (z >> 31)


def word(seed, stream, index):
    return mix(seed & WORD ^ mix(((stream << 32) + index + 1) * GAMMA & WORD))


def seed_of(wanted, stream, index):
    """Return the seed under which a counter's word is `wanted`: mix is undone step by step."""

    def unshift(z, bits):
        found = z
        for _ in range(64 // bits):
            found = z ^ (found >> bits)
        return found

    z = unshift(wanted, 31) * pow(SECOND, -1, 1 << 64) & WORD
    z = unshift(z, 27) * pow(FIRST, -1, 1 << 64) & WORD
    seed = unshift(z, 30) ^ mix(((stream << 32) + index + 1) * GAMMA & WORD)
    return seed - (seed >> 63 << 64)


def seeds(*values):
    return torch.tensor(values, dtype=torch.int64)


def bits_of(u):
    """Return the 52 bits that were drawn for each number, as [*, 52] of -1 and 1."""
    drawn = (u.numpy() * 2**52).astype(np.int64)
    return ((drawn[..., None] >> np.arange(52)) & 1).astype(np.float32) * 2 - 1


def assert_uncorrelated(x_NI, y_NJ):
    """No column of x goes with any of y; both of variance 1, the bound for the worst of I J."""
    correlation = x_NI.T @ y_NJ / len(x_NI)
    worst = stats.norm.isf(1e-5 / correlation.size)
    assert np.abs(correlation).max() < worst / math.sqrt(len(x_NI))


def test_the_reference_is_splitmix64():
    """Its published first outputs for the seed 1234567."""
    outputs = [mix((1234567 + i * GAMMA) & WORD) for i in (1, 2, 3, 4, 5)]
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("stream", [0, 1, 2, 1000])
def test_uniforms_are_the_words_in_whole_numbers(stream):
    found = uniform(seeds(*SEEDS), stream, (3, 5))
    assert found.shape == (len(SEEDS), 3, 5)
    assert found.dtype == torch.float64
    for b, seed in enumerate(SEEDS):
        expected = [((word(seed, stream, i) >> 12) + 0.5) / 2**52 for i in range(15)]
        assert found[b].flatten().tolist() == expected


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_normals_are_box_and_mullers_of_the_words(count):
    found = normal(seeds(*SEEDS), 2, (count,))
    assert found.shape == (len(SEEDS), count)
    assert found.dtype == torch.float32
    for b, seed in enumerate(SEEDS):
        expected = []
        for i in range((count + 1) // 2):
            radius_bits, angle_bits = divmod(word(seed, 2, i), 1 << 24)
            radius = math.sqrt(-2 * math.log((radius_bits + 0.5) / 2**40))
            angle = 2 * math.pi * angle_bits / 2**24
            expected += [radius * math.cos(angle), radius * math.sin(angle)]
        np.testing.assert_allclose(found[b], expected[:count], atol=2e-6)


def test_no_word_gives_a_zero_a_one_or_an_infinity():
    extreme = seeds(*(seed_of(wanted, 1, 0) for wanted in (0, WORD)))
    assert uniform(extreme, 1, ()).tolist() == [2.0**-53, 1 - 2.0**-53]
    largest, smallest = normal(extreme, 1, (2,))
    assert largest[0] == pytest.approx(math.sqrt(-2 * math.log(2.0**-41)))
    assert largest[1] == 0
    assert smallest.abs().max() < 1e-3


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_number_depends_on_its_seed_and_its_place_alone(draw):
    whole = draw(seeds(*SEEDS), 1, (4, 9))
    assert torch.equal(draw(seeds(*SEEDS[::-1]), 1, (4, 9)), whole.flip(0))
    for b, seed in enumerate(SEEDS):
        torch.manual_seed(b)
        assert torch.equal(draw(seeds(seed), 1, (4, 9))[0], whole[b])
        assert torch.equal(draw(seeds(seed), 1, (13,))[0], whole[b].flatten()[:13])


@pytest.mark.parametrize("draw", [uniform, normal])
def test_nothing_is_drawn_of_nothing(draw):
    assert draw(seeds(), 0, (2, 3)).shape == (0, 2, 3)
    assert draw(seeds(1, 2), 0, (0, 3)).shape == (2, 0, 3)
    assert draw(seeds(1, 2), 0, ()).shape == (2,)


@pytest.mark.parametrize("count", [1 << 4, 1 << 10, 1 << 20], ids=["seeds", "both", "indices"])
class TestLaws:
    """Over the numbers of many seeds, few of them as close to each other as can be, or one's."""

    def test_uniforms(self, count):
        u = uniform(torch.arange(MANY // count), 0, (count,)).flatten().numpy()
        assert stats.kstest(u, "uniform").pvalue > 1e-3
        assert stats.kstest(u**1.01, "uniform").pvalue < 1e-6

    def test_normals(self, count):
        z = normal(torch.arange(MANY // count), 0, (count,)).flatten().double().numpy()
        assert stats.kstest(z, "norm").pvalue > 1e-3
        assert stats.kstest(1.02 * z, "norm").pvalue < 1e-6
        assert stats.kstest(z + 0.01, "norm").pvalue < 1e-6
        for bound in (3.5, 4.5):
            beyond = int((np.abs(z) > bound).sum())
            assert stats.binomtest(beyond, MANY, 2 * stats.norm.sf(bound)).pvalue > 1e-3

    def test_both_normals_of_a_word_are_independent(self, count):
        pairs = normal(torch.arange(MANY // count), 0, (count // 2, 2)).double().reshape(-1, 2)
        x, y = pairs.numpy().T
        assert stats.kstest(x**2 + y**2, stats.chi2(2).cdf).pvalue > 1e-3
        assert stats.kstest(np.arctan2(y, x) / (2 * math.pi) + 0.5, "uniform").pvalue > 1e-3
        squares = (pairs**2 - 1) / math.sqrt(2)
        assert_uncorrelated(np.stack([x, squares[:, 0]], 1), np.stack([y, squares[:, 1]], 1))


class TestIndependence:
    """Every bit of a number against every bit of the others that are nearest to it."""

    drawn = staticmethod(lambda: uniform(torch.arange(257), 1, (256,)))

    def test_of_the_bits_of_a_number(self):
        bits = bits_of(self.drawn()).reshape(-1, 52)
        assert_uncorrelated(np.ones((len(bits), 1), dtype=np.float32), bits)
        correlation = bits.T @ bits / len(bits) - np.eye(52)
        assert np.abs(correlation).max() < 6 / math.sqrt(len(bits))

    def test_of_neighbouring_seeds(self):
        bits = bits_of(self.drawn())
        assert_uncorrelated(bits[:-1].reshape(-1, 52), bits[1:].reshape(-1, 52))

    def test_of_neighbouring_indices(self):
        bits = bits_of(self.drawn())
        assert_uncorrelated(bits[:, :-1].reshape(-1, 52), bits[:, 1:].reshape(-1, 52))

    @pytest.mark.parametrize("other", [0, 2])
    def test_of_streams(self, other):
        theirs = bits_of(uniform(torch.arange(257), other, (256,)))
        assert_uncorrelated(bits_of(self.drawn()).reshape(-1, 52), theirs.reshape(-1, 52))

    def test_of_seeds_that_differ_in_any_one_bit(self):
        base = torch.from_numpy(np.random.default_rng(0).integers(-(1 << 62), 1 << 62, 4096))
        mine = bits_of(uniform(base, 0, ()))
        flipped = [bits_of(uniform(base ^ seed, 0, ())) for seed in seeds(*(1 << np.arange(63)))]
        kept = np.stack([(mine * theirs).mean(axis=0) for theirs in flipped])
        assert np.abs(kept).max() < stats.norm.isf(1e-5 / kept.size) / math.sqrt(len(base))

    def test_of_normals_of_neighbouring_seeds_indices_and_streams(self):
        z = normal(torch.arange(257), 1, (1024,)).numpy()
        other = normal(torch.arange(257), 2, (1024,)).numpy()
        for mine, theirs in ((z[:-1], z[1:]), (z, other), (z[:, :-1], z[:, 1:])):
            assert_uncorrelated(mine.reshape(-1, 1), theirs.reshape(-1, 1))
        # Each seed's numbers against each other seed's.
        correlation = z @ z.T / z.shape[1] - np.diag((z**2).mean(axis=1))
        assert np.abs(correlation).max() < 6 / math.sqrt(z.shape[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same():
    here, there = torch.arange(64), torch.arange(64, device="cuda")
    assert torch.equal(uniform(there, 1, (1001,)).cpu(), uniform(here, 1, (1001,)))
    drawn = normal(there, 1, (1001,))
    assert drawn.is_cuda
    torch.testing.assert_close(drawn.cpu(), normal(here, 1, (1001,)), rtol=1e-5, atol=1e-5)
