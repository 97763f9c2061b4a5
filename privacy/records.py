"""Records and their labels, whatever a record is, and which of them a worker owns."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from privacy.errors import DataError
from privacy.keystream import derive

_DOMAIN = "umbra/record-ids/1"
_DIGEST_BYTES = 16


@dataclass(frozen=True, eq=False)
class LabelledRecords:
    """Records as bytes, with a label each, in any order.

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


@dataclass(frozen=True, eq=False)
class OwnedRecords:
    """The records that one worker owns, in the order in which it loaded them.

    Attributes:
        values: uint8 [n, ...]; n may be 0.
        labels: int64 [n].
        ids: uint64 [n], all different: what a record is known by in one attempt.
        total: N, the records of the whole set.
    """

    values: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    ids: np.ndarray = field(repr=False)
    total: int


def own(
    batches: Iterable[LabelledRecords], key: bytes, rank: int, size: int, expected: int
) -> OwnedRecords:
    """Keep the records that worker `rank` of `size` owns, out of all; hold no others.

    A record is known by its digest under the secret of an attempt, and doubles by their count. So
    neither a file's name nor the order of loading decides which records are in a batch, who owns
    one, or what views it has, and workers that load in different orders never both own a record.

    Args:
        batches: the whole set.
        key: 32 bytes, the secret of one attempt at a run, the same on all its workers.
        rank: of this worker, in [0, size).
        size: number of workers.
        expected: N, as declared.

    Raises:
        DataError: there are more records than expected.

    >>> records = LabelledRecords(np.arange(8, dtype=np.uint8).reshape(8, 1), np.arange(8))
    >>> parts = [own([records], bytes(32), rank, size=2, expected=8) for rank in (0, 1)]
    >>> sorted(label for part in parts for label in part.labels.tolist())
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    own_key, store, total = derive(key, _DOMAIN), _Store(expected, size), 0
    for batch in batches:
        total += len(batch)
        if total > expected:
            raise DataError(f"N = {expected} records were declared, and the source holds more")
        digests = _digests(batch, own_key)
        # By the digest and not by the id: all doubles of a record have one owner, who counts them.
        mine = np.flatnonzero(digests[:, 0] % np.uint64(size) == rank)
        store.add(batch.values[mine], batch.labels[mine], digests[mine])
    values, labels, digests = store.stored()
    return OwnedRecords(values, labels, _ids(digests, own_key), total)


class _Store:
    """Arrays that grow, with room for a worker's share from the start.

    Memory that nothing was written to is not resident, and joining parts in the end would hold all
    of them twice.
    """

    def __init__(self, expected: int, size: int) -> None:
        share = expected / size
        # Six standard deviations over what a worker owns on average; never more than there are.
        self._room = min(expected, math.ceil(share + 6 * math.sqrt(share)) + 1)
        self._arrays: list[np.ndarray] = []
        self._count = 0

    def add(self, *parts: np.ndarray) -> None:
        """Take in rows of every array."""
        rows = len(parts[0])
        if not self._arrays:
            self._arrays = [np.empty((self._room, *x.shape[1:]), x.dtype) for x in parts]
        # A set of many doubles is shared out unevenly.
        while self._count + rows > len(self._arrays[0]):
            self._arrays = [np.concatenate([x, np.empty_like(x)]) for x in self._arrays]
        for array, part in zip(self._arrays, parts, strict=True):
            array[self._count : self._count + rows] = part
        self._count += rows

    def stored(self) -> list[np.ndarray]:
        """Return the arrays, cut to what was added."""
        none = np.empty((0, 1), np.uint8), np.empty(0, np.int64), np.empty((0, 2), np.uint64)
        return [array[: self._count] for array in self._arrays or none]


def _digests(records: LabelledRecords, key: bytes) -> np.ndarray:
    """Return keyed BLAKE2b (RFC 7693) of every record's shape, label and bytes, uint64 [n, 2]."""
    shape = "x".join(map(str, records.values.shape[1:]))
    begun = hashlib.blake2b(f"{shape}|".encode(), digest_size=_DIGEST_BYTES, key=key)
    digests = bytearray()
    for value, label in zip(records.values, records.labels.astype("<i8"), strict=True):
        one = begun.copy()
        one.update(label.tobytes())
        one.update(value.tobytes())
        digests += one.digest()
    return np.frombuffer(digests, "<u8").reshape(-1, 2).astype(np.uint64)


def _ids(digests: np.ndarray, key: bytes) -> np.ndarray:
    """Return an id, uint64 [n], for digests [n, 2]: their first half, or for doubles another."""
    # 64 bits of a keyed digest: among 10^6 records two have one id with probability 3e-8.
    ids = digests[:, 0].copy()
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    begins = np.ones(len(ids), dtype=bool)
    begins[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    position = np.arange(len(ids))
    counts = position - np.maximum.accumulate(np.where(begins, position, 0))
    for row, count in zip(order[counts > 0], counts[counts > 0], strict=True):
        message = digests[row].astype("<u8").tobytes() + int(count).to_bytes(8, "little")
        double = hashlib.blake2b(message, digest_size=8, key=key).digest()
        ids[row] = int.from_bytes(double, "little")
    return ids
