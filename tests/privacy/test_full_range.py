"""Every primitive once at the range of a production run, and each check under the bug it is for.

Tests are usually smaller than production in one dimension: ids of 16 bits, steps of 8, a thousand
words, one channel. Here ids go to 10^6 and to 63 bits, steps beyond 10^4, words and noise to 10^7,
class sums over 10^5 images of three channels.

False alarms: unseeded or not, each statistical check fails what is sound with probability below
1e-6; keys and seeds are fixed besides, so that a run of the tests either always passes or never.
"""

import hashlib
import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from scipy import stats

import privacy.noise
import privacy.poisson
from privacy.class_sums import noisy_class_sums
from privacy.clipping import add_clipped_vector
from privacy.keystream import KeyStream, derive, words_at
from privacy.mechanisms import DiscreteLaplace
from privacy.noise import SecureGaussian
from privacy.noisy_counts import noisy_counts
from privacy.poisson import PoissonSampler

KEY = bytes(range(32))
MANY = 10_000_000  # words, and draws of noise
FALSE_ALARM = 1e-6


def two_sided(count, size, p):
    """Return the p-value of a binomial count."""
    return min(1.0, 2 * min(stats.binom.cdf(count, size, p), stats.binom.sf(count - 1, size, p)))


# Masks.


def require_ids_of_any_size_to_be_apart():
    """An id and the same with another bit set, up to the 63rd, are two records with two coins."""
    sampler, q = PoissonSampler(KEY, 1, 0.5), 0.5
    low = np.arange(2000)
    base = sampler.mask(3, low)
    for bit in range(11, 63):
        other = sampler.mask(3, low | np.int64(1 << bit))
        p = two_sided(int((base == other).sum()), len(low), q * q + (1 - q) ** 2)
        assert p > FALSE_ALARM / 52, f"ids that differ in bit {bit} share their coins"


def require_a_million_coins_to_be_fair():
    """Of 10^6 ids every tenth part, and all of them, are taken with probability q."""
    q = 64 / 60_000
    mask = PoissonSampler(KEY, 1, q).mask(0, np.arange(1_000_000))
    tenths = mask.reshape(10, -1).sum(axis=1)
    assert min(two_sided(int(k), 100_000, q) for k in tenths) > FALSE_ALARM / 11
    assert two_sided(int(mask.sum()), mask.size, q) > FALSE_ALARM / 11


def require_steps_to_have_masks_of_their_own():
    """No mask of 20,000 steps is another step's: 64 fair coins agree by chance once in 10^11."""
    sampler, ids = PoissonSampler(KEY, 1, 0.5), np.arange(64) + 2**40
    masks = np.packbits([sampler.mask(step, ids) for step in range(20_000)], axis=1)
    assert len(np.unique(masks, axis=0)) == len(masks)


def require_attempts_to_have_masks_of_their_own():
    ids = np.arange(64) + 2**40
    masks = [PoissonSampler(KEY, attempt, 0.5).mask(9_999, ids) for attempt in range(1000)]
    assert len(np.unique(np.packbits(masks, axis=1), axis=0)) == len(masks)


def truncated_ids(bits):
    def plant(patch):
        kept = np.int64((1 << bits) - 1)
        patch.setattr(privacy.poisson, "words_at", lambda key, ids: words_at(key, ids & kept))

    return plant


def truncated_context(position, bits):
    """Cut a number of what a step's key is derived from: 0 is the attempt, 1 the step."""

    def plant(patch):
        def wrong(key, domain, *context):
            cut = list(context)
            cut[position] &= (1 << bits) - 1
            return derive(key, domain, *cut)

        patch.setattr(privacy.poisson, "derive", wrong)

    return plant


def biased_beyond_16_bits(patch):
    """Ids that do not fit into 16 bits get a word of half the range."""

    def wrong(key, ids):
        return words_at(key, ids) >> (ids >> 16 != 0).astype(np.uint64)

    patch.setattr(privacy.poisson, "words_at", wrong)


def without_attempt(patch):
    patch.setattr(
        privacy.poisson, "derive", lambda key, domain, attempt, step: derive(key, domain, step)
    )


MASKS = [
    require_ids_of_any_size_to_be_apart,
    require_a_million_coins_to_be_fair,
    require_steps_to_have_masks_of_their_own,
    require_attempts_to_have_masks_of_their_own,
]

PLANTED = {
    "ids cut to 16 bits": (truncated_ids(16), require_ids_of_any_size_to_be_apart),
    "ids cut to 32 bits": (truncated_ids(32), require_ids_of_any_size_to_be_apart),
    "ids cut to 53 bits": (truncated_ids(53), require_ids_of_any_size_to_be_apart),
    "large ids taken too often": (biased_beyond_16_bits, require_a_million_coins_to_be_fair),
    "steps cut to 8 bits": (truncated_context(1, 8), require_steps_to_have_masks_of_their_own),
    "steps cut to 12 bits": (truncated_context(1, 12), require_steps_to_have_masks_of_their_own),
    "steps cut to 14 bits": (truncated_context(1, 14), require_steps_to_have_masks_of_their_own),
    "attempts cut to 8 bits": (
        truncated_context(0, 8),
        require_attempts_to_have_masks_of_their_own,
    ),
    "attempt not in the key": (without_attempt, require_attempts_to_have_masks_of_their_own),
}


@pytest.mark.parametrize("check", MASKS, ids=lambda check: check.__name__)
def test_masks_at_full_range(check):
    check()


@pytest.mark.parametrize("name", PLANTED)
def test_a_bug_that_shows_only_at_full_range_is_caught(monkeypatch, name):
    plant, check = PLANTED[name]
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()


def test_words_of_64_bit_ids_are_those_of_the_cipher():
    """The word of id i is the first half of AES-256 of i as 16 bytes, least first."""
    ids = np.array([0, 2**16, 2**31, 2**32 + 1, 10**6, 2**53 + 1, 2**62, 2**63 - 1])
    encryptor = Cipher(AES(KEY), ECB()).encryptor()
    expected = [encryptor.update(int(i).to_bytes(16, "little"))[:8] for i in ids]
    assert words_at(KEY, ids).tolist() == [int.from_bytes(word, "little") for word in expected]


# Streams.


def distinct(numbers):
    ordered = np.sort(numbers)  # numpy's own `unique` takes ten times as long
    return bool((ordered[1:] != ordered[:-1]).all())


def require_no_word_to_repeat(words):
    """10^7 words of 64 bits have two alike by chance once in 370,000 keys."""
    assert distinct(words)


def require_normal_draws(drawn):
    """Check spread, tails and neighbours of 10^7 draws; the spread is known to 0.03 %."""
    n = len(drawn)
    squares = float(np.square(drawn).sum())
    assert 2 * min(stats.chi2.cdf(squares, n), stats.chi2.sf(squares, n)) > FALSE_ALARM
    assert abs(drawn.mean()) < 5 / math.sqrt(n)
    far = int((np.abs(drawn) > 4).sum())
    assert two_sided(far, n, 2 * stats.norm.sf(4)) > FALSE_ALARM
    for lag in (1, 1 << 13, 1 << 14, 1 << 20):
        assert abs(float(drawn[:-lag] @ drawn[lag:])) < 5 * math.sqrt(n)


def require_no_noise_to_repeat(drawn):
    """No two neighbours occur twice: two doubles as one number, alike by chance once in 10^6."""
    bits = drawn.view(np.uint64)
    pairs = bits[0::2] * np.uint64(0x9E3779B97F4A7C15) + bits[1::2]
    assert distinct(pairs)


class Repeating(KeyStream):
    """A stream that begins again after 2^20 words."""

    def words(self, count):
        if not hasattr(self, "_kept"):
            self._kept, self._at = super().words(1 << 20), 0
        index = (self._at + np.arange(count)) % len(self._kept)
        self._at += count
        return self._kept[index]


def test_no_word_repeats_at_full_range():
    require_no_word_to_repeat(KeyStream(KEY).words(MANY))
    with pytest.raises(AssertionError):
        require_no_word_to_repeat(Repeating(KEY).words(MANY // 4))


def test_noise_at_full_range_is_normal_and_never_repeats(monkeypatch):
    drawn = SecureGaussian.seeded(1).standard_normal(MANY)
    require_normal_draws(drawn)
    require_no_noise_to_repeat(drawn)
    for wrong in (0.997 * drawn, 1.003 * drawn, np.clip(drawn, -4, 4)):
        with pytest.raises(AssertionError):
            require_normal_draws(wrong)
    monkeypatch.setattr(privacy.noise, "KeyStream", Repeating)
    with pytest.raises(AssertionError):
        require_no_noise_to_repeat(SecureGaussian.seeded(1).standard_normal(MANY // 4))


# Sums.


def test_a_vector_of_a_network_of_10_million_parameters_is_clipped_to_its_norm():
    """Just above C it is scaled, just below it is not; against sums of 64 bits' precision."""
    vector = SecureGaussian.seeded(2).gaussian((MANY,), 1.0)
    norm = float(np.sqrt(np.square(vector.numpy(), dtype=np.longdouble).sum()))
    for factor in (0.99, 1.01, 1.5, 100.0):
        total = torch.zeros(MANY, dtype=torch.float64)
        add_clipped_vector(total, vector, norm / factor)
        expected = min(1.0, 1 / factor)
        assert float(total @ vector) / norm**2 == pytest.approx(expected, rel=1e-11)
        assert math.sqrt(float(total @ total)) <= norm / factor or factor < 1


def test_class_sums_over_many_chunks_are_exact_and_one_record_counts_once():
    """10^5 images of three channels that are the same bytes: the sum of a class is known."""
    records, classes, C = 100_003, 10, 0.5
    image = torch.tensor([0.9, 0.01, 0.3])[:, None, None].expand(3, 2, 2)
    labels = torch.arange(records) % classes
    noise = SecureGaussian.seeded(3).gaussian((classes, 3, 2, 2), 1e-9 * C)
    found = noisy_class_sums(
        image.expand(records, 3, 2, 2),
        labels,
        classes,
        clip_norm=C,
        noise_multiplier=1e-9,
        noise=SecureGaussian.seeded(3),
    )
    one = image.double() * (C / image.double().norm())
    counts = torch.bincount(labels, minlength=classes)
    expected = counts[:, None, None, None] * one
    assert torch.allclose(found - noise, expected, rtol=1e-9)
    assert len(set(counts.tolist())) == 2  # no two classes could be exchanged unseen


def test_counts_of_millions_come_with_noise_of_the_scale_that_is_paid_for():
    count, scale = 10**7, 1000.0
    released = np.array([c.value for c in noisy_counts([count] * 4000, 1, DiscreteLaplace(scale))])
    # |noise| has mean 1 / sinh(1 / scale), nearly its standard deviation.
    mean = np.abs(released - count).mean() * math.sinh(1 / scale)
    assert abs(mean - 1) < 5 / math.sqrt(4000)
    assert abs((released - count).mean()) < 5 * math.sqrt(2) * scale / math.sqrt(4000)
    assert not abs(mean / 2 - 1) < 5 / math.sqrt(4000)


def test_derived_keys_do_not_repeat_over_steps_and_attempts():
    """Steps to 10^4 and beyond and attempts to 2^63, in every place of a context."""
    numbers = [*range(10_300), *(2**k + d for k in range(14, 64) for d in (0, 1))]
    keys = {derive(KEY, "umbra/poisson/1", *c) for n in numbers for c in ((n, 0), (1, n))}
    contexts = {c for n in numbers for c in ((n, 0), (1, n))}
    assert len(keys) == len(contexts)
    label = b"umbra/poisson/1"
    message = len(label).to_bytes(8, "big") + label + (7).to_bytes(8, "big")
    message += (10_000).to_bytes(8, "big")
    expected = hashlib.blake2b(message, digest_size=32, key=KEY).digest()
    assert derive(KEY, "umbra/poisson/1", 7, 10_000) == expected
