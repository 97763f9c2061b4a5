import hashlib
import hmac
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.budget.identity import SKETCH_SIZE, overlap, shared_records, sketch
from privacy.errors import InvalidRequest
from privacy.records import LabelledRecords

KEY = bytes(range(32))


def labelled(values):
    return LabelledRecords(values, np.zeros(len(values), np.int64))


def images(numbers, shape=(2, 4, 1)):
    """One image of 8 bytes for every number."""
    return labelled(np.array(list(numbers), dtype=np.uint64).view(np.uint8).reshape(-1, *shape))


def test_the_definition_written_out():
    """Sketches are in ledgers for ever: a change here would hide every near copy."""
    own_key = hmac.new(KEY, b"umbra sketch key 1", hashlib.sha256).digest()
    pixels = np.array([[[[1], [2]]], [[[3], [4]]]], dtype=np.uint8)
    expected = sorted(
        hmac.new(own_key, b"umbra image 1|1x2x1|uint8|" + bytes(image), hashlib.sha256).hexdigest()[
            :16
        ]
        for image in ([1, 2], [3, 4])
    )
    assert list(sketch(labelled(pixels), KEY)) == expected


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=40), st.randoms())
def test_order_and_repetitions_do_not_matter(numbers, random):
    again = numbers + random.choices(numbers, k=5)
    random.shuffle(again)
    found = sketch(images(again), KEY)
    assert found == sketch(images(set(numbers)), KEY)
    assert len(found) == len(set(numbers))
    assert list(found) == sorted(found)


def test_only_the_smallest_are_kept():
    many = images(range(2000))
    found = sketch(many, KEY)
    alone = sorted(sketch(images([i]), KEY)[0] for i in range(2000))
    assert list(found) == alone[:SKETCH_SIZE]


def test_needs_its_key_and_the_shape():
    one = images(range(10))
    assert set(sketch(one, KEY)).isdisjoint(sketch(one, bytes(32)))
    assert set(sketch(one, KEY)).isdisjoint(sketch(images(range(10), (4, 2, 1)), KEY))
    # The keys of sketches and of fingerprints are apart: neither is a test for the other's texts.
    plain = {
        hmac.new(KEY, b"umbra image 1|2x4x1|uint8|" + image.tobytes(), "sha256").hexdigest()[:16]
        for image in one.values
    }
    assert plain.isdisjoint(sketch(one, KEY))


numbers = st.sets(st.integers(0, 60), min_size=1, max_size=60)


@given(numbers, numbers)
def test_small_sets_are_compared_exactly(one, other):
    found = overlap(sketch(images(one), KEY), sketch(images(other), KEY))
    assert found.share == len(one & other) / min(len(one), len(other))
    assert (found.shared, found.compared) == (len(one & other), min(len(one), len(other)))


def drawn(rng, n):
    """The digests of n distinct images under a key of their own: uniform numbers of 64 bits."""
    return [f"{number:016x}" for number in rng.integers(0, 2**64, n, dtype=np.uint64)]


def lowest(digests):
    return tuple(sorted(digests)[:SKETCH_SIZE])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(("smaller", "ratio"), [(2000, 1), (1500, 3), (900, 8), (150, 10)])
def test_the_estimate_is_as_accurate_as_it_says(share, smaller, ratio):
    """Over 100 keys the estimates scatter as binomial shares do, around what is shared."""
    common = round(share * smaller)
    true = common / smaller
    rng = np.random.default_rng(smaller + common)
    estimates, errors = [], []
    for _ in range(100):
        digests = drawn(rng, smaller + ratio * smaller - common)
        one, other = lowest(digests[:smaller]), lowest(digests[smaller - common :])
        found = overlap(one, other)
        assert found == overlap(other, one)
        assert found.compared >= 0.3 * min(SKETCH_SIZE, smaller) / ratio
        estimates.append(found.share)
        errors.append(math.sqrt(true * (1 - true) / found.compared))
    typical = float(np.mean(errors))
    off = np.mean(estimates) - true
    assert -4 * typical / 10 - 1e-12 <= off <= 4 * typical / 10 + 0.02 * (ratio == 1) + 1e-12
    assert np.std(estimates) <= 1.4 * typical + 1e-12


def test_a_copy_in_a_larger_set_is_seen_as_often_as_it_says():
    """A set that is 128 times smaller leaves about 2 digests, so e⁻² of all copies are missed."""
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(300):
        digests = drawn(rng, 4096)
        seen += overlap(lowest(digests[:32]), lowest(digests)).share == 1.0
    expected = 1 - math.exp(-2)
    deviation = math.sqrt(expected * (1 - expected) / 300)
    assert seen / 300 == pytest.approx(expected, abs=4 * deviation)


@given(numbers, numbers)
def test_shared_records_is_exact(one, other):
    assert shared_records(images(one), images(other), KEY) == bool(one & other)


def test_one_shared_record_among_many_is_found():
    one, other = images(range(3000)), images(range(3000, 6000))
    assert not shared_records(one, other, KEY)
    assert shared_records(one, images(range(2999, 6000)), KEY)
    assert not shared_records(one, images(range(3000), (4, 2, 1)), KEY)


def test_a_wrong_key_is_refused():
    with pytest.raises(InvalidRequest, match="32 bytes"):
        sketch(images([1]), b"short")
    with pytest.raises(InvalidRequest, match="32 bytes"):
        shared_records(images([1]), images([2]), b"short")
