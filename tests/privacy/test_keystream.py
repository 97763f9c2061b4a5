import copy
import itertools
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import InvalidRequest
from privacy.keystream import KEY_BYTES, KeyStream, derive, os_key, words_at

ZERO_KEY = bytes(KEY_BYTES)
# AES-256 of the zero block under the zero key (NIST known answer).
KNOWN = bytes.fromhex("dc95c078a2408989ad48a21492842087")
NUMBERS = st.lists(st.integers(0, 2**64 - 1), max_size=2)
CONTEXTS = st.tuples(st.text(max_size=2), NUMBERS)


def test_known_answer_of_the_cipher():
    first, second = (int.from_bytes(KNOWN[i : i + 8], "little") for i in (0, 8))
    assert KeyStream(ZERO_KEY).words(2).tolist() == [first, second]
    assert words_at(ZERO_KEY, np.array([0])).tolist() == [first]


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_stream_continues_where_it_stopped(a, b):
    stream = KeyStream(ZERO_KEY)
    parts = np.concatenate([stream.words(a), stream.words(b)])
    assert np.array_equal(parts, KeyStream(ZERO_KEY).words(a + b))
    assert parts.dtype == np.uint64


def test_no_word_repeats():
    assert len(np.unique(KeyStream(ZERO_KEY).words(100_000))) == 100_000
    assert len(np.unique(words_at(ZERO_KEY, np.arange(100_000)))) == 100_000


@pytest.mark.parametrize("words", [KeyStream(ZERO_KEY).words(64_000), None])
def test_every_bit_is_a_fair_coin(words):
    words = words_at(ZERO_KEY, np.arange(64_000)) if words is None else words
    ones = ((words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).sum(
        axis=0, dtype=int
    )
    assert np.abs((ones - 32_000) / np.sqrt(16_000)).max() < 4.5


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=30), st.randoms())
def test_a_word_depends_on_its_index_only(indices, random):
    together = dict(zip(indices, words_at(ZERO_KEY, np.array(indices)).tolist(), strict=True))
    shuffled = random.sample(indices, len(indices))
    assert words_at(ZERO_KEY, np.array(shuffled)).tolist() == [together[i] for i in shuffled]
    assert words_at(ZERO_KEY, np.array(shuffled[:1])).tolist() == [together[shuffled[0]]]


def test_words_keep_the_shape_of_the_indices():
    assert words_at(ZERO_KEY, np.zeros((2, 3), np.int64)).shape == (2, 3)
    assert words_at(ZERO_KEY, np.zeros(0, np.int64)).shape == (0,)


def test_operating_system_keys_differ():
    keys = {os_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {KEY_BYTES}


@given(CONTEXTS, CONTEXTS)
def test_different_contexts_have_different_keys(one, other):
    same = derive(ZERO_KEY, one[0], *one[1]) == derive(ZERO_KEY, other[0], *other[1])
    assert same == (one == other)


def test_labels_that_would_run_together_are_kept_apart():
    contexts = [
        ("a",),
        ("", 0),
        ("a\0", 1),
        ("a", 0),
        ("a", 0, 0),
        ("a", 1, 2),
        ("a", 2, 1),
        ("a", 12),
        ("a", 258),
        ("a" + "\0" * 8,),
    ]
    keys = [derive(ZERO_KEY, *context) for context in contexts]
    assert all(a != b for a, b in itertools.combinations(keys, 2))
    assert derive(b"\1" * KEY_BYTES, "a") != keys[0]


@pytest.mark.parametrize("number", [-1, 2**64, 1.0, True, None, "1"])
def test_contexts_are_whole_numbers(number):
    with pytest.raises(InvalidRequest, match="whole number"):
        derive(ZERO_KEY, "a", number)


@pytest.mark.parametrize("key", [b"", b"secret", bytes(33), "0" * 32, None, bytearray(32)])
@pytest.mark.parametrize("use", [lambda k: derive(k, "a"), KeyStream])
def test_keys_are_32_bytes_and_never_shown(key, use):
    with pytest.raises(InvalidRequest, match="32 bytes") as caught:
        use(key)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_stream_cannot_be_duplicated(duplicate):
    with pytest.raises(TypeError, match="repeat its words"):
        duplicate(KeyStream(ZERO_KEY))


def test_a_forked_child_cannot_repeat_the_words(monkeypatch):
    stream = KeyStream(ZERO_KEY)
    stream.words(1)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="forked"):
        stream.words(1)
