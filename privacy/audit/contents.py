"""Which content stood behind which name, replayed; contents are compared again by code of its own.

A sketch holds the smallest keyed digests of a part's images, at most 256 of them; one that is not
full holds them all. See `privacy.bottom_k`, which decided when the rows were written.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privacy.audit.rules import require, whole
from privacy.ledger import Row

_FULL = 256
_NEAR_COPY = 20  # of so many digests compared, one shared is 5 %
_BEYOND = 1 << 64


@dataclass(frozen=True)
class PartReplay:
    """One part of a data set: its content, and a sketch where the row that bound it had one."""

    dataset: str
    name: str
    fingerprint: str
    records: int
    sketch: tuple[int, ...]


class ContentsReplay:
    """All parts of all data sets while their rows go by.

    Attributes:
        accepted: the rows that accepted an overlap, by the two names.
        sharing: pairs of data sets whose sketches hold a digest in common.
    """

    def __init__(self) -> None:
        self.accepted: dict[frozenset[str], Row] = {}
        self.sharing: set[frozenset[str]] = set()
        self._parts: dict[str, PartReplay] = {}
        self._named: dict[tuple[str, str], str] = {}
        self._holders: dict[int, list[PartReplay]] = defaultdict(list)

    def part_of(self, fingerprint: str, dataset: str | None) -> PartReplay | None:
        """Return the part of a data set that a fingerprint is bound to."""
        part = self._parts.get(fingerprint)
        return None if part is None or part.dataset != dataset else part

    def parts(self) -> dict[str, list[PartReplay]]:
        """Return the parts of all data sets, in the order in which they were bound."""
        found: dict[str, list[PartReplay]] = defaultdict(list)
        for part in self._parts.values():
            found[part.dataset].append(part)
        return found

    def bind(self, dataset: str, body: Mapping[str, Any]) -> None:
        """Take in a `bind` or a `partition` row. Raises BrokenRule."""
        new = PartReplay(
            dataset=dataset,
            name=str(body.get("partition", "train")),
            fingerprint=str(body["fingerprint"]),
            records=whole(body["records"]),
            sketch=_digests(body["sketch"]) if "partition" in body else (),
        )
        require(len(new.sketch) <= new.records, "its sketch has more digests than it has records")
        owner = self._parts.get(new.fingerprint, new)
        require(
            owner.dataset == dataset,
            f"{dataset!r} is the content of {owner.dataset!r} under another name",
        )
        require(owner.name == new.name, f"{new.name!r} is the content of the part {owner.name!r}")
        require(owner.records == new.records, "its N is not what was bound before")
        require(owner is new or not owner.sketch, f"the part {new.name!r} was bound twice")
        bound = self._named.setdefault((dataset, new.name), new.fingerprint)
        require(bound == new.fingerprint, f"{dataset!r} was bound to other content before")
        self._parts[new.fingerprint] = new
        self._compare(new)
        # Schema 1 knew this part alone and kept no sketch.
        first = self._parts[self._named.get((dataset, "train"), new.fingerprint)]
        require(
            first is new or first.sketch != (),
            f"nothing shows that {new.name!r} shares no record with 'train', which has no sketch",
        )

    def accept(self, row: Row, other: str) -> None:
        """Take in an `overlap` row."""
        self.accepted.setdefault(frozenset((str(row.dataset), other)), row)

    def _compare(self, new: PartReplay) -> None:
        found: dict[str, PartReplay] = {}
        for digest in new.sketch:
            found |= {part.fingerprint: part for part in self._holders[digest]}
            self._holders[digest].append(new)
        problems = [problem for part in found.values() if (problem := self._shared(new, part))]
        require(not problems, "; ".join(problems))

    def _shared(self, new: PartReplay, part: PartReplay) -> str:
        if part.dataset == new.dataset:
            return f"the parts {part.name!r} and {new.name!r} of {new.dataset!r} share records"
        pair = frozenset((part.dataset, new.dataset))
        self.sharing.add(pair)
        if pair in self.accepted or not _is_near_copy(new.sketch, part.sketch):
            return ""
        return (
            f"a good part of {new.dataset!r} lies in {part.dataset!r} too, and nobody had accepted "
            "that their budgets add up"
        )


def connected(pairs: Iterable[frozenset[str]]) -> list[list[str]]:
    """Return the groups of names that hang together by `pairs`, sorted."""
    groups: list[set[str]] = []
    for pair in pairs:
        touched = [group for group in groups if group & pair]
        groups = [group for group in groups if not group & pair]
        groups.append(set(pair).union(*touched))
    return sorted(sorted(group) for group in groups)


def _is_near_copy(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether 5 % of the smaller set's digests, where both sketches are complete, are shared."""
    ends = [digests[-1] if len(digests) >= _FULL else _BEYOND for digests in (one, other)]
    horizon = min(ends)
    in_one = sum(digest <= horizon for digest in one)
    in_other = sum(digest <= horizon for digest in other)
    in_both = in_one + in_other - len({d for d in (*one, *other) if d <= horizon})
    return in_both * _NEAR_COPY >= min(in_one, in_other)


def _digests(sketch: Any) -> tuple[int, ...]:
    texts = list(sketch)
    sound = all(
        type(t) is str and len(t) == 16 and set(t) <= set("0123456789abcdef") for t in texts
    )
    require(sound and texts == sorted(set(texts)), "its sketch is not one of sorted digests")
    require(0 < len(texts) <= _FULL, f"its sketch has {len(texts)} digests")
    return tuple(int(text, 16) for text in texts)
