"""The identity of content: neither another name nor a copy gets a second budget."""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self, overload

import numpy as np

from privacy.errors import BudgetRefused, InvalidRequest
from privacy.ledger import Kind, Row, Transaction, View
from privacy.records import LabelledRecords
from privacy.validation import key_bytes, positive_int

# k. Of two sets of equal size, a share of 5 % is estimated to within about 1.4 %.
SKETCH_SIZE = 256

# 64 bits: any two of 10^8 images collide with probability under 1/3000.
DIGEST_DIGITS = 16


@dataclass(frozen=True)
class Overlap:
    """What two sketches say about the sets behind them."""

    # Estimated share, 0 to 1, of the smaller set's distinct images that lie in the other.
    share: float
    shared: int  # digests that both sketches hold; one is proof of a shared image
    # Digests of the smaller set that could be looked up in the other: the sample's size. The share
    # is exact where both sets fit into a sketch.
    compared: int


def sketch(records: LabelledRecords, key: bytes) -> tuple[str, ...]:
    """Return the SKETCH_SIZE smallest digests of the distinct values, ascending, in hex.

    It depends neither on labels, order nor repetitions.
    """
    return _smallest(_digests(records, key))


def _smallest(digests: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(digest.hex() for digest in sorted(set(digests))[:SKETCH_SIZE])


def overlap(one: Sequence[str], other: Sequence[str]) -> Overlap:
    """Estimate from two sketches under one key how much the smaller set shares with the other.

    A set that is r times smaller leaves about k/r digests to compare: if all of it lies in the
    larger one, that shows but with probability about e^(−k/r).
    """
    # A sketch knows its whole set up to its largest digest, and everything where it is not full.
    # Up to the lesser of the two thresholds both are complete: of the smaller set's digests there,
    # a uniform sample of its images, the share is counted that the other set has too. Its standard
    # deviation is sqrt(p(1−p)/compared); of sets of equal size it errs upwards, by 0.02 at most,
    # since the lesser count divides.
    limit = min(_threshold(one), _threshold(other))
    mine = {digest for digest in one if digest <= limit}
    theirs = {digest for digest in other if digest <= limit}
    shared, compared = len(mine & theirs), min(len(mine), len(theirs))
    return Overlap(shared / compared if compared else 0.0, shared, compared)


def shared_records(one: LabelledRecords, other: LabelledRecords, key: bytes) -> bool:
    """Return whether two sets share any record, labels aside: an exact answer, from all of both.

    Records of another shape are other records.
    """
    return not set(_digests(one, key)).isdisjoint(_digests(other, key))


def _threshold(digests: Sequence[str]) -> str:
    """Return the largest digest up to which a sketch holds all of its set."""
    return max(digests) if len(digests) >= SKETCH_SIZE else "f" * DIGEST_DIGITS


def _digests(records: LabelledRecords, key: bytes) -> Iterator[bytes]:
    """Yield 8 bytes of HMAC-SHA256 of every record's shape and bytes, by a key of this use."""
    own_key = hmac.digest(key_bytes(key), b"umbra sketch key 1", hashlib.sha256)
    header = f"umbra image 1|{_shape(records)}|uint8|".encode()
    for value in records.values:
        yield hmac.digest(own_key, header + value.tobytes(), hashlib.sha256)[: DIGEST_DIGITS // 2]


def _shape(records: LabelledRecords) -> str:
    return "x".join(map(str, records.values.shape[1:]))


_LANE_BYTES = 256  # 2048 bits
_FINGERPRINT = re.compile(r"[!-~]{1,128}")
_DIGEST = re.compile(rf"[0-9a-f]{{{DIGEST_DIGITS}}}")


@dataclass(frozen=True)
class Content:
    """What a budget knows of the records that it pays for; without the key it reveals nothing.

    Raises InvalidRequest where these cannot be of any data set.
    """

    fingerprint: str  # the same for the same records in any order
    records: int  # N
    sketch: tuple[str, ...]  # by which overlap with other contents is estimated
    # The digests of all its different records, 8 bytes each and ascending, by which any record that
    # it shares is found; None where only the sketch is known.
    digests: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.fingerprint, str) or not _FINGERPRINT.fullmatch(self.fingerprint):
            raise InvalidRequest("A fingerprint must be 1 to 128 printable ASCII characters.")
        object.__setattr__(self, "records", positive_int("records", self.records))
        digests = self.sketch
        if not isinstance(digests, tuple) or not all(
            isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in digests
        ):
            raise InvalidRequest(
                f"A sketch must be a tuple of digests of {DIGEST_DIGITS} lower-case hex digits."
            )
        most = min(SKETCH_SIZE, self.records)
        if not 1 <= len(digests) <= most or list(digests) != sorted(set(digests)):
            raise InvalidRequest(
                f"A sketch of {self.records} records must be 1 to {most} different digests in "
                f"ascending order, found {len(digests)}, or some repeated or out of order."
            )
        if self.digests is not None:
            found = all_digests(self.digests, None)
            if len(found) > self.records or np.any(found[1:] <= found[:-1]):
                raise InvalidRequest("Digests must be at most one a record, in ascending order.")


def content_of(records: LabelledRecords, key: bytes) -> Content:
    """Return what a budget has to know of a data set, or of a part of one."""
    digests = list(_digests(records, key))
    flat = records.values.reshape(len(records), -1)
    # A value that is the same in every place, as of a blank page, says nothing of whose record it
    # is: two sets that both hold one share no record by that.
    telling = (flat != flat[:, :1]).any(axis=1)
    packed = b"".join(sorted({d for d, tells in zip(digests, telling, strict=True) if tells}))
    return Content(fingerprint(records, key), len(records), _smallest(digests), packed)


def count_doubles(
    train: LabelledRecords, holdout: LabelledRecords | None, key: bytes
) -> dict[str, int]:
    """Return how many records repeat another's value and label in a set, or the value across both.

    The counts are private where the records are.
    """
    sets = {"in the training set": train}
    if holdout is not None:
        sets["in the holdout"] = holdout
    digests = {name: list(_digests(each, key)) for name, each in sets.items()}
    found = {
        name: len(each) - len({*zip(digests[name], each.labels.tolist(), strict=True)})
        for name, each in sets.items()
    }
    both = set.intersection(*map(set, digests.values())) if holdout is not None else set()
    return {**found, "in both": len(both)}


@overload
def all_digests(packed: bytes, sketch: Sequence[str] | None) -> np.ndarray: ...
@overload
def all_digests(packed: bytes | None, sketch: Sequence[str] | None) -> np.ndarray | None: ...
def all_digests(packed: bytes | None, sketch: Sequence[str] | None) -> np.ndarray | None:
    """Return the digests of all records, uint64 ascending; None where they are not all known."""
    if packed is not None:
        return np.frombuffer(packed, ">u8")
    # One that is not full holds them all.
    if sketch is not None and len(sketch) < SKETCH_SIZE:
        return np.array([int(digest, 16) for digest in sketch], ">u8")
    return None


def fingerprint(records: LabelledRecords, key: bytes) -> str:
    """Return the `Fingerprint` of records that are all in memory."""
    return str(Fingerprint(key).add(records))


class Fingerprint:
    """A name for the multiset of records that only holders of `key` can compute or test.

    Each record (shape, type, bytes, label) is hashed by HMAC-SHA256 and expanded by SHAKE-256 to
    2048 bits; these numbers are added mod 2^2048 (Bellare & Micciancio 1997, AdHash) and the sum is
    hashed with the count. The records are those of the source, before any resizing.
    """

    def __init__(self, key: bytes) -> None:
        # A plain hash would let anybody test whether they hold the same data.
        self._key = key_bytes(key)
        self._total = self._count = 0

    def add(self, records: LabelledRecords) -> Self:
        """Take in more records."""
        header = f"umbra record 1|{_shape(records)}|uint8|int64|".encode()
        # Addition forgets the order and keeps repetitions (XOR would not), and 2048 bits put the
        # generalised birthday attack (Wagner 2002) beyond 2^90.
        total = self._total
        for value, label in zip(records.values, records.labels, strict=True):
            encoded = header + int(label).to_bytes(8, "little", signed=True) + value.tobytes()
            digest = hmac.digest(self._key, encoded, hashlib.sha256)
            total += int.from_bytes(hashlib.shake_256(digest).digest(_LANE_BYTES), "little")
        self._total = total % (1 << (8 * _LANE_BYTES))
        self._count += len(records)
        return self

    def __str__(self) -> str:
        whole = b"umbra data set 1|" + self._count.to_bytes(8, "little")
        whole += self._total.to_bytes(_LANE_BYTES, "little")
        return "v1-" + hmac.digest(self._key, whole, hashlib.sha256).hex()


# The part that runs use where they name none, and the only one that schema 1 had; and the one
# that is kept out of training.
TRAIN, HOLDOUT = "train", "holdout"

# From this estimated share on, two data sets that share records are one.
NEAR_COPY = 0.05


@dataclass(frozen=True)
class Partition:
    """One part of a data set, or a holdout that a run opened, and its content."""

    dataset: str  # the declared name
    name: str  # the part's name
    fingerprint: str  # of its content
    records: int  # N of the part
    sketch: tuple[str, ...] | None  # None where schema 1 bound it, which kept none

    @classmethod
    def from_row(cls, row: Row) -> "Partition":
        """Read a part from the row that bound it."""
        body = row.content
        return cls(
            dataset=str(row.dataset),
            name=HOLDOUT if row.kind == Kind.HOLDOUT else body.get("partition", TRAIN),
            fingerprint=body["fingerprint"],
            records=body["records"],
            sketch=tuple(body["sketch"]) if "sketch" in body else None,
        )


def partitions_of(view: View, dataset: str) -> tuple[Partition, ...]:
    """Return the parts of a data set in the order in which they were bound."""
    rows = view.of(Kind.BIND, dataset) + view.of(Kind.PARTITION, dataset)
    parts = [Partition.from_row(row) for row in rows]
    return tuple({part.fingerprint: part for part in parts}.values())


def holdings(view: View) -> tuple[Partition, ...]:
    """Return the parts of all data sets, and the holdouts that runs opened."""
    kinds = (Kind.BIND, Kind.PARTITION, Kind.HOLDOUT)
    held = [Partition.from_row(row) for kind in kinds for row in view.of(kind)]
    # The row that was written last knows most of a content: schema 1 kept no sketch.
    return tuple({(part.dataset, part.name, part.fingerprint): part for part in held}.values())


def shares(view: View, one: "Content | Partition", other: Partition) -> bool | None:
    """Return whether content shares a record with a part; None where the ledger cannot tell."""
    if one.fingerprint == other.fingerprint:
        return True
    mine, theirs = _known(view, one), _known(view, other)
    if mine is not None and theirs is not None:
        return bool(np.intersect1d(mine, theirs, assume_unique=True).size)
    # One digest that both hold is proof, though a sketch without one is none of the contrary.
    sketches = (
        part.sketch or () if digests is None else [f"{digest:016x}" for digest in digests]
        for part, digests in ((one, mine), (other, theirs))
    )
    return None if set(next(sketches)).isdisjoint(next(sketches)) else True


def _known(view: View, of: "Content | Partition") -> np.ndarray | None:
    if isinstance(of, Content):
        return all_digests(of.digests, of.sketch)
    row = view.by_claim(f"content:{of.fingerprint}")
    packed = None if row is None else base64.b64decode(row.content["digests"])
    return all_digests(packed, of.sketch)


def record(t: Transaction, content: Content) -> None:
    """Append the digests of a content, once, where they are known."""
    claim = f"content:{content.fingerprint}"
    if content.digests is None or t.by_claim(claim) is not None:
        return
    digests = base64.b64encode(content.digests).decode()
    body = {"fingerprint": content.fingerprint, "records": content.records, "digests": digests}
    t.append(Kind.CONTENT, body, claim=claim)


def bind(
    t: Transaction, dataset: str, partition: str, content: Content, exact: bool = False
) -> None:
    """Check that a part of a data set is this content, binding it on its first use.

    Where `exact`, one record that it shares with another data set is one too many, and its digests
    are recorded; otherwise sketches are compared.

    Raises InvalidRequest where N differs from what the content was bound with, and BudgetRefused
    where the content is a copy or a near copy of another data set, stands behind another part, or
    the part behind other content; where parts share records.
    """
    claim = f"bind:{content.fingerprint}"
    owner = t.by_claim(claim)
    bound = False
    if owner is not None:
        require_part(t, dataset, partition, content)
        # What schema 1 bound is bound again with its sketch, so that others can be compared.
        claim = f"sketch:{content.fingerprint}"
        bound = owner.kind == Kind.PARTITION or t.by_claim(claim) is not None
    # An older version bound it by a sketch alone: it is compared again, now that all is known.
    recorded = not exact or t.by_claim(f"content:{content.fingerprint}") is not None
    if bound and recorded:
        return
    _require_disjoint(t, dataset, partition, content, exact)
    _require_no_copy(t, dataset, content, exact)
    if exact:
        record(t, content)
    if bound:
        return
    body = {
        "partition": partition,
        "fingerprint": content.fingerprint,
        "records": content.records,
        "sketch": list(content.sketch),
    }
    t.append(Kind.PARTITION, body, dataset=dataset, claim=claim)


def require_part(view: View, dataset: str, partition: str, content: Content) -> None:
    """Refuse content that is bound to something else than this part; unbound content passes.

    Raises InvalidRequest where N differs from what it was bound with, and BudgetRefused where it is
    another data set's or another part's.
    """
    row = view.by_claim(f"bind:{content.fingerprint}")
    if row is None:
        return
    owner = Partition.from_row(row)
    if owner.dataset != dataset:
        raise BudgetRefused(
            f"This is the content of the data set {owner.dataset!r} under another name. A renamed "
            f"or copied data set has no budget of its own: use the name {owner.dataset!r}."
        )
    if owner.name != partition:
        raise BudgetRefused(
            f"This is the content of the part {owner.name!r} of {dataset!r}, requested as "
            f"{partition!r}. A copied part has no budget of its own: use the part {owner.name!r}."
        )
    if owner.records != content.records:
        found = f"N={content.records} for the same content"
        raise InvalidRequest(
            f"{dataset!r} was bound with N={owner.records} records, found {found}."
        )


def overlap_claim(one: str, other: str) -> str:
    """Return the claim of the row that accepts what two data sets share, whoever is named first."""
    return ":".join(("overlap", *sorted((one, other))))


def _require_disjoint(
    view: View, dataset: str, partition: str, content: Content, exact: bool
) -> None:
    for part in partitions_of(view, dataset):
        if part.fingerprint == content.fingerprint:
            continue
        if part.name == partition:
            raise BudgetRefused(
                f"The name {dataset!r} (part {partition!r}) stands for other content than this "
                "since it was first used. Give the changed data set a name and a budget of its own."
            )
        shared = shares(view, content, part)
        if part.sketch is None or (exact and shared is None):
            raise BudgetRefused(
                f"Parts must not share records, and the older version that last used the part "
                f"{part.name!r} of {dataset!r} kept too little to compare. Submit a run on "
                f"{part.name!r} first."
            )
        if shared:
            raise BudgetRefused(
                f"The parts {part.name!r} and {partition!r} of {dataset!r} share records: remove "
                "them from one of the two. Each part may spend the whole budget."
            )


def _require_no_copy(view: View, dataset: str, content: Content, exact: bool) -> None:
    for part in holdings(view):
        if part.dataset == dataset or view.by_claim(overlap_claim(dataset, part.dataset)):
            continue
        found = _shared(view, content, part) if exact else _near_copy(content, part)
        if found:
            raise BudgetRefused(
                f"{found} A changed copy has no budget of its own: use the name {part.dataset!r}. "
                "Or let an officer accept that both budgets add up for shared records: "
                f"umbra budget accept-overlap {dataset} {part.dataset}"
            )


def _shared(view: View, content: Content, part: Partition) -> str:
    shared = shares(view, content, part)
    if shared is None:
        return (
            "The older version that last used the data set "
            f"{part.dataset!r} kept too little to show that these records are not in it too. "
            f"Submit a run on {part.dataset!r} first, by which all of it gets known."
        )
    where = "" if part.name == TRAIN else f" (part {part.name!r})"
    return f"Records of this data set also lie in {part.dataset!r}{where}." if shared else ""


def _near_copy(content: Content, part: Partition) -> str:
    if part.sketch is None or overlap(part.sketch, content.sketch).share < NEAR_COPY:
        return ""
    return (
        f"An estimated {NEAR_COPY:.0%} or more of these records also lie in the data set "
        f"{part.dataset!r}."
    )
