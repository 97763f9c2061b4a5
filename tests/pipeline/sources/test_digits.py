import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.sources import DigitsSource
from privacy.errors import DataError

CLASSES = tuple("0123456789")


def test_both_parts_together_are_all_digits_once():
    train = DigitsSource().load(8, 1, CLASSES)
    holdout = DigitsSource(split="holdout").load(8, 1, CLASSES)
    assert (len(train), len(holdout)) == (1438, 359)
    digits = load_digits()
    images, labels = [], []
    taken = {"train": iter(range(len(train))), "holdout": iter(range(len(holdout)))}
    for index in range(1797):
        part, name = (holdout, "holdout") if index % 5 == 4 else (train, "train")
        row = next(taken[name])
        images.append(part.values[row, :, :, 0])
        labels.append(part.labels[row])
    assert np.array_equal(labels, digits.target)
    # 16 grey levels come back exactly.
    assert np.array_equal(np.rint(np.stack(images) * (16 / 255)), digits.images)


def test_values_span_the_bytes():
    images = DigitsSource().load(8, 1, CLASSES).values
    assert (images.min(), images.max()) == (0, 255)
    assert set(np.unique(images)) == {round(value * 255 / 16) for value in range(17)}


@pytest.mark.parametrize(
    "spec", [(16, 1, CLASSES), (8, 3, CLASSES), (8, 1, CLASSES[:9])], ids=["size", "rgb", "classes"]
)
def test_a_spec_that_does_not_fit_is_refused(spec):
    with pytest.raises(DataError, match="digits: "):
        DigitsSource().load(*spec)
