import dataclasses

import numpy as np
import pytest

from privacy.errors import DataError
from privacy.records import LabelledRecords

VALUES = np.zeros((3, 4, 4, 1), dtype=np.uint8)
LABELS = np.array([0, 1, 1], dtype=np.int64)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"values": VALUES.astype(np.float32)}, r"uint8 .* found float32"),
        ({"values": VALUES[:, 0, 0, 0]}, r"found uint8 \[3\]"),
        ({"labels": LABELS.astype(np.int32)}, "found int32"),
        ({"labels": LABELS[:2]}, r"int64 \[3\].*found int64 \[2\]"),
        ({"labels": LABELS[:, None]}, r"found int64 \[3, 1\]"),
        ({"values": VALUES[:0], "labels": LABELS[:0]}, "empty"),
        ({"values": VALUES[:, :0]}, "empty"),
    ],
)
def test_other_arrays_are_refused(change, text):
    with pytest.raises(DataError, match=text):
        LabelledRecords(**({"values": VALUES, "labels": LABELS} | change))


@pytest.mark.parametrize("shape", [(3, 1), (3, 4), (3, 2, 3, 2, 1)])
def test_a_record_may_have_any_rank(shape):
    assert len(LabelledRecords(np.ones(shape, np.uint8), LABELS)) == 3


def test_contents_are_not_shown():
    shown = repr(LabelledRecords(VALUES + 213, LABELS + 7777))
    assert "213" not in shown and "7777" not in shown


def test_contents_cannot_be_exchanged():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LabelledRecords(VALUES, LABELS).values = VALUES


def test_parts_are_joined_in_order():
    parts = [LabelledRecords(VALUES + part, LABELS + part) for part in np.arange(3, dtype=np.uint8)]
    whole = LabelledRecords.concatenate(iter(parts))
    assert whole.labels.tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert whole.values[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
