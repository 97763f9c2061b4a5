"""The digits that come with scikit-learn: 1,797 grey images of 8×8, real and public."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from pipeline.sources.base import SourceOptions, checked
from privacy.records import LabelledRecords


class DigitsSource(SourceOptions):
    """Load scikit-learn's digits; every fifth record (index 4, 9, 14, …) is held out."""

    kind: Literal["digits"] = "digits"
    split: Literal["train", "holdout"] = "train"

    def batches(
        self, size: int, channels: int, classes: Sequence[str]
    ) -> Iterator[LabelledRecords]:
        """Yield one split of the digits at once, values 0…16 scaled to 0…255."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
        # By the index alone: whether a record is held out depends on no other record.
        held_out = np.arange(len(images)) % 5 == 4
        part = held_out if self.split == "holdout" else ~held_out
        yield checked(images[part], digits.target[part], size, channels, classes, "digits")
