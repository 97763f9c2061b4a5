"""Records and their labels, whatever a record is."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from privacy.errors import DataError


@dataclass(frozen=True, eq=False)
class LabelledRecords:
    """Records as bytes, with a label each, in an order that is the same at every load.

    Attributes:
        values: uint8 [N, ...], not empty; what the further axes mean is the caller's to say.
        labels: int64 [N].

    Raises:
        DataError: on other types or shapes, or where there is no record.

    >>> LabelledRecords(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1]))
    LabelledRecords()
    """

    # Neither is shown by `repr`, which ends up in logs.
    values: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        values, labels = self.values, self.labels
        if values.dtype != np.uint8 or values.ndim < 2:
            raise DataError(
                f"records: uint8 [N, ...] was expected, found {values.dtype} {list(values.shape)}"
            )
        if labels.dtype != np.int64 or labels.shape != values.shape[:1]:
            raise DataError(
                f"labels: int64 [{len(values)}], one a record, was expected, "
                f"found {labels.dtype} {list(labels.shape)}"
            )
        if values.size == 0:
            raise DataError("the data set is empty: at least one record was expected")

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def concatenate(cls, parts: Iterable["LabelledRecords"]) -> "LabelledRecords":
        """Return the records of all parts, in order; there must be one part at least."""
        values, labels = zip(*((part.values, part.labels) for part in parts), strict=True)
        return cls(np.concatenate(values), np.concatenate(labels))
