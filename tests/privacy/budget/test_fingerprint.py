import hashlib
import hmac

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.budget import identity
from privacy.budget.identity import SKETCH_SIZE, Content, sketch
from privacy.errors import InvalidRequest
from privacy.records import LabelledRecords

KEY = bytes(range(32))


def content_of(values, labels, key):
    return identity.content_of(LabelledRecords(values, labels), key)


def fingerprint(values, labels, key):
    return identity.fingerprint(LabelledRecords(values, labels), key)


datasets = st.integers(0, 2**32 - 1).flatmap(
    lambda seed: st.tuples(st.just(np.random.default_rng(seed)), st.integers(1, 6))
)


def draw(rng, n):
    images = rng.integers(0, 256, (n, 2, 3, 1), dtype=np.uint8)
    return images, rng.integers(-2, 3, n)


@given(datasets)
def test_order_does_not_matter(dataset):
    rng, n = dataset
    images, labels = draw(rng, n)
    order = rng.permutation(n)
    assert fingerprint(images[order], labels[order], KEY) == fingerprint(images, labels, KEY)


@given(datasets, st.data())
def test_every_change_matters(dataset, data):
    rng, n = dataset
    images, labels = draw(rng, n)
    at = data.draw(st.integers(0, n - 1))
    pixel = images.copy()
    pixel[at].reshape(-1)[data.draw(st.integers(0, 5))] ^= 1 << data.draw(st.integers(0, 7))
    label = labels.copy()
    label[at] ^= 1 << data.draw(st.integers(0, 62))
    again = [*range(n), at]
    found = {
        fingerprint(images, labels, KEY),
        fingerprint(pixel, labels, KEY),
        fingerprint(images, label, KEY),
        fingerprint(images[again], labels[again], KEY),
        fingerprint(images[[*again, at]], labels[[*again, at]], KEY),
        fingerprint(images, labels, bytes(32)),
        fingerprint(images.reshape(n, 3, 2, 1), labels, KEY),
        fingerprint(images.reshape(n, 1, 2, 3), labels, KEY),
    }
    if n > 1:
        found.add(fingerprint(np.delete(images, at, 0), np.delete(labels, at), KEY))
    assert len(found) == 8 + (n > 1)


def test_labels_belong_to_their_images():
    images = np.arange(2, dtype=np.uint8).reshape(2, 1, 1, 1)
    one = fingerprint(images, np.array([0, 1]), KEY)
    assert one != fingerprint(images, np.array([1, 0]), KEY)


def test_a_memory_layout_is_not_content():
    images, labels = draw(np.random.default_rng(0), 4)
    expected = fingerprint(images, labels, KEY)
    assert fingerprint(np.asfortranarray(images), labels, KEY) == expected
    assert fingerprint(images[::-1], labels[::-1], KEY) == expected


def test_the_definition_written_out():
    """The value is in ledgers for ever: a change here gives every data set a fresh budget."""
    images = np.array([7, 9], dtype=np.uint8).reshape(2, 1, 1, 1)
    total = 0
    for pixel, label in ((7, 3), (9, -1)):
        record = b"umbra record 1|1x1x1|uint8|int64|" + label.to_bytes(8, "little", signed=True)
        digest = hmac.new(KEY, record + bytes([pixel]), hashlib.sha256).digest()
        total += int.from_bytes(hashlib.shake_256(digest).digest(256), "little")
    message = b"umbra data set 1|" + (2).to_bytes(8, "little")
    message += (total % 2**2048).to_bytes(256, "little")
    expected = "v1-" + hmac.new(KEY, message, hashlib.sha256).hexdigest()
    assert fingerprint(images, np.array([3, -1]), KEY) == expected


def test_a_wrong_key_is_refused():
    with pytest.raises(InvalidRequest, match="32 bytes"):
        fingerprint(np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int64), b"short")


def test_a_content_is_all_three():
    images, labels = draw(np.random.default_rng(0), 300)
    found = content_of(images, labels, KEY)
    whole = LabelledRecords(images, labels)
    assert found == Content(
        fingerprint(images, labels, KEY), 300, sketch(whole, KEY), found.digests
    )
    assert found.digests.hex().startswith("".join(found.sketch))
    assert len(found.sketch) == SKETCH_SIZE


def test_a_relabelled_content_has_the_same_sketch_and_another_fingerprint():
    images, labels = draw(np.random.default_rng(0), 30)
    one, other = content_of(images, labels, KEY), content_of(images, labels + 1, KEY)
    assert one.sketch == other.sketch
    assert one.fingerprint != other.fingerprint


def test_a_content_of_repeated_images_has_fewer_digests_than_records():
    images, labels = draw(np.random.default_rng(0), 3)
    found = content_of(images.repeat(4, 0), labels.repeat(4), KEY)
    assert (found.records, len(found.sketch)) == (12, 3)
