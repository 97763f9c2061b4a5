"""What the rows say, replayed by rules of its own.

Nothing here calls the budget: a bug there must not be able to hide itself. Only the vocabulary is
shared: kinds of rows and mechanisms.
"""

import base64
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from privacy.audit.opacus import epsilon_at
from privacy.errors import InvalidRequest
from privacy.ledger import Finding, Kind, Row
from privacy.mechanisms import Mechanism, from_record
from privacy.validation import positive_number


class BrokenRule(Exception):
    """A row breaks a rule of its kind; becomes a finding."""


def require(holds: bool, problem: str) -> None:
    """Raise BrokenRule with `problem` unless it holds."""
    if not holds:
        raise BrokenRule(problem)


def whole(value: Any) -> int:
    """Return a whole number of at least 1. Raises BrokenRule on anything else."""
    if type(value) is not int or value < 1:
        raise BrokenRule(f"a whole number of at least 1 was expected, found {value!r}")
    return value


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
        # Data sets whose facts are declared: of these, one shared record is one too many.
        self._exact: set[str] = set()
        self._digests: dict[str, np.ndarray] = {}
        self._opened: list[PartReplay] = []

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
        problem = f"{dataset!r} is the content of {owner.dataset!r} under another name"
        require(owner.dataset == dataset, problem)
        require(owner.name == new.name, f"{new.name!r} is the content of the part {owner.name!r}")
        require(owner.records == new.records, "its N is not what was bound before")
        require(owner is new or not owner.sketch, f"the part {new.name!r} was bound twice")
        bound = self._named.setdefault((dataset, new.name), new.fingerprint)
        require(bound == new.fingerprint, f"{dataset!r} was bound to other content before")
        self._parts[new.fingerprint] = new
        self._compare(new)
        self._compare_exactly(new)
        # Schema 1 knew this part alone and kept no sketch.
        first = self._parts[self._named.get((dataset, "train"), new.fingerprint)]
        problem = f"nothing shows that {new.name!r} and 'train', without a sketch, are disjoint"
        require(first is new or first.sketch != (), problem)

    def accept(self, row: Row, other: str) -> None:
        """Take in an `overlap` row."""
        self.accepted.setdefault(frozenset((str(row.dataset), other)), row)

    def declare(self, dataset: str) -> None:
        """Take in that a data set's facts are declared."""
        self._exact.add(dataset)

    def know(self, body: Mapping[str, Any]) -> None:
        """Take in a `content` row: the digests of all records of a content. Raises BrokenRule."""
        fingerprint = str(body["fingerprint"])
        packed = base64.b64decode(body["digests"], validate=True)
        require(len(packed) % 8 == 0, "its digests are cut off")
        digests = np.frombuffer(packed, ">u8")
        require(bool(np.all(digests[1:] > digests[:-1])), "its digests are not in ascending order")
        require(len(digests) <= whole(body["records"]), "it has more digests than records")
        require(fingerprint not in self._digests, "its content was known before")
        self._digests[fingerprint] = digests
        bound = self._parts.get(fingerprint)
        if bound is not None:
            require(bound.records == body["records"], "its N is not what was bound before")
            self._compare_exactly(bound)

    def open(self, dataset: str, body: Mapping[str, Any]) -> None:
        """Take in a `holdout` row. Raises BrokenRule."""
        fingerprint, records = str(body["fingerprint"]), whole(body["records"])
        require(fingerprint in self._digests, "its content is not known")
        self._opened.append(PartReplay(dataset, "holdout", fingerprint, records, ()))

    def _compare_exactly(self, new: PartReplay) -> None:
        if new.dataset not in self._exact:
            return
        others = [part for part in self._parts.values() if part.fingerprint != new.fingerprint]
        others += [part for part in self._opened if part.dataset != new.dataset]
        problems = [problem for part in others if (problem := self._shared_exactly(new, part))]
        require(not problems, "; ".join(problems))

    def _shared_exactly(self, new: PartReplay, part: PartReplay) -> str:
        common = self._common(new, part)
        pair = frozenset((part.dataset, new.dataset))
        if common and len(pair) == 2:
            self.sharing.add(pair)
        if common is False or pair in self.accepted:
            return ""
        found = "shares records" if common else "may share records"
        return f"{new.dataset!r} ({new.name}) {found} with {part.dataset!r} ({part.name})"

    def _common(self, one: PartReplay, other: PartReplay) -> bool | None:
        """Return whether two contents share a record, None where nothing shows that they do not."""
        if one.fingerprint == other.fingerprint:
            return True
        mine, theirs = self._all(one), self._all(other)
        if mine is not None and theirs is not None:
            return bool(np.isin(mine, theirs).any())
        known = (
            set(part.sketch if all_ is None else all_.tolist())
            for part, all_ in ((one, mine), (other, theirs))
        )
        return None if next(known).isdisjoint(next(known)) else True

    def _all(self, part: PartReplay) -> np.ndarray | None:
        complete = 0 < len(part.sketch) < _FULL
        return self._digests.get(
            part.fingerprint, np.array(part.sketch, ">u8") if complete else None
        )

    def _compare(self, new: PartReplay) -> None:
        found: dict[str, PartReplay] = {}
        for digest in new.sketch:
            found |= {part.fingerprint: part for part in self._holders[digest]}
            self._holders[digest].append(new)
        problems = [problem for part in found.values() if (problem := self._shared(new, part))]
        require(not problems, "; ".join(problems))

    def _shared(self, new: PartReplay, part: PartReplay) -> str:
        # Sketches hold blank records too, which are no evidence: what is known exactly decides.
        if {new.fingerprint, part.fingerprint} <= self._digests.keys():
            return ""
        if part.dataset == new.dataset:
            return f"the parts {part.name!r} and {new.name!r} of {new.dataset!r} share records"
        pair = frozenset((part.dataset, new.dataset))
        self.sharing.add(pair)
        if pair in self.accepted or not _is_near_copy(new.sketch, part.sketch):
            return ""
        return f"{new.dataset!r} shares records with {part.dataset!r}, which nobody had accepted"


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


UNBOUND = "(not bound)"
EVERY_PART = "(every part)"


@dataclass
class DatasetReplay:
    """A declared name while its rows go by."""

    epsilon: float
    delta: float
    closed: bool = False
    # What an officer declared: (unit, the most records of one); None where nobody has.
    facts: tuple[str, int] | None = None
    orders: dict[str, float] = field(default_factory=dict)  # that alone admit, by part

    def order(self, part: str) -> float | None:
        """Return the order that admits on a part, None where none was fixed yet."""
        return self.orders.get(part, self.orders.get(EVERY_PART))


@dataclass
class ReservationReplay:
    """A reservation while its rows go by."""

    run_id: str
    dataset: str
    partition: str  # the part of the data set that pays, UNBOUND where its content was never bound
    author: str | None  # who reserved, as that process said
    void: bool
    unit: str
    records_per_unit: int
    mechanisms: dict[str, Mechanism]
    charged: dict[str, int]
    attempt: int = 0  # the newest attempt
    attempts: int = 0  # how many there were
    on_one_order: bool = False  # whether the schema of its row had an order fixed before it
    settled: bool = False
    exports: list[str] = field(default_factory=list)

    def paid(self, in_full: bool) -> list[Mechanism]:
        """Return the mechanisms with the steps charged, or with all that may be charged."""
        if in_full and not self.settled:
            return list(self.mechanisms.values())
        return [
            mechanism.with_steps(self.charged[name])
            for name, mechanism in self.mechanisms.items()
            if self.charged[name] > 0
        ]


# The first schema in which one order, fixed before anything is released, admits on a part.
_ONE_ORDER = 3

# Every ε is rounded up at four digits before it is compared with the declared one.
TOLERANCE = 1e-4


class Replay:
    """Feed it every row in order; it gathers data sets, reservations and findings."""

    def __init__(self) -> None:
        self.rows = 0
        self.datasets: dict[str, DatasetReplay] = {}
        self.contents = ContentsReplay()
        self.reservations: dict[str, ReservationReplay] = {}
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self._schema = 1
        # The rule of a kind is the method of its name.
        self._rules = {kind.value: getattr(self, f"_{kind.value}") for kind in Kind}

    def feed(self, row: Row) -> None:
        """Take one row in; whatever it holds, it never raises."""
        self.rows += 1
        rule = self._rules.get(row.kind)
        try:
            if rule is None:
                raise BrokenRule(f"it has an unknown kind, {row.kind!r}")
            rule(row, row.content)
        except BrokenRule as broken:
            self.findings.append(Finding(row.seq, str(broken)))
        except (KeyError, TypeError, ValueError, AttributeError, InvalidRequest) as error:
            self.findings.append(Finding(row.seq, f"its body cannot be understood: {error!r}"))

    def _genesis(self, row: Row, body: Mapping[str, Any]) -> None:
        require(row.seq == 1, "a ledger begins only once")
        self._schema = whole(body["schema"])

    def _migrate(self, row: Row, body: Mapping[str, Any]) -> None:
        require(whole(body["schema"]) > self._schema, "it goes back to an older schema")
        self._schema = body["schema"]

    def _signer(self, row: Row, body: Mapping[str, Any]) -> None:
        # The signatures are checked with the chain.
        require(len(bytes.fromhex(body["public_key"])) == 32, "it names no Ed25519 key")

    def _declare(self, row: Row, body: Mapping[str, Any]) -> None:
        name = str(row.dataset)
        require(name not in self.datasets, f"{name!r} was given a second budget")
        epsilon = positive_number("epsilon", body["epsilon"])
        delta = positive_number("delta", body["delta"])
        require(delta < 1, "δ is not below 1")
        self.datasets[name] = DatasetReplay(epsilon, delta)

    def _close(self, row: Row, body: Mapping[str, Any]) -> None:
        self._dataset(row.dataset).closed = True

    def _overlap(self, row: Row, body: Mapping[str, Any]) -> None:
        other = str(body["other"])
        self._dataset(row.dataset)
        self._dataset(other)
        require(other != row.dataset, "a data set overlaps with itself")
        self.contents.accept(row, other)

    def _facts(self, row: Row, body: Mapping[str, Any]) -> None:
        dataset = self._dataset(row.dataset)
        require(dataset.facts is None, f"{row.dataset!r} was given facts a second time")
        dataset.facts = (str(body["unit"]), whole(body["records_per_unit"]))
        self.contents.declare(str(row.dataset))
        flags = (body["public"], body["public_holdout"])
        require(all(type(flag) is bool for flag in flags), "whether it is public is not said")

    def _content(self, row: Row, body: Mapping[str, Any]) -> None:
        self.contents.know(body)

    def _holdout(self, row: Row, body: Mapping[str, Any]) -> None:
        problem = f"a holdout of {row.dataset!r} was opened before its facts were declared"
        require(self._dataset(row.dataset).facts is not None, problem)
        require(isinstance(body["run"], str), "it names no run")
        self.contents.open(str(row.dataset), body)

    def _bind(self, row: Row, body: Mapping[str, Any]) -> None:
        self._dataset(row.dataset)
        self.contents.bind(str(row.dataset), body)
        require(self._schema == 1, "content was bound without a sketch to compare it by")

    def _partition(self, row: Row, body: Mapping[str, Any]) -> None:
        self._dataset(row.dataset)
        require(isinstance(body["partition"], str), "it names no part")
        self.contents.bind(str(row.dataset), body)

    def _reserve(self, row: Row, body: Mapping[str, Any]) -> None:
        identity = str(row.reservation)
        require(identity not in self.reservations, "the reservation's id was used before")
        mechanisms = {part["name"]: from_record(part["mechanism"]) for part in body["plan"]}
        require(len(mechanisms) == len(body["plan"]) > 0, "its plan is empty or repeats a name")
        part = self.contents.part_of(str(body["fingerprint"]), row.dataset)
        # Known from here on, whatever else is wrong: what it charged was spent.
        self.reservations[identity] = ReservationReplay(
            run_id=str(body["run"]),
            dataset=str(row.dataset),
            partition=UNBOUND if part is None else part.name,
            author=row.author,
            void=body["void"] is not False,
            unit=str(body["unit"]),
            records_per_unit=whole(body["records_per_unit"]),
            mechanisms=mechanisms,
            charged=dict.fromkeys(mechanisms, 0),
            on_one_order=self._schema >= _ONE_ORDER,
        )
        dataset = self._dataset(row.dataset)
        if part is None:
            raise BrokenRule("its content is not what was bound")
        require(body["records"] == part.records, "its N is not what was bound")
        said = (str(body["unit"]), body["records_per_unit"])
        require(dataset.facts in (None, said), "it states another unit than the officer declared")
        require(dataset.delta * part.records < 1, "δ is not below 1/N")
        require(not dataset.closed, f"it draws on {row.dataset!r}, which was closed before")
        if self._schema >= _ONE_ORDER:
            self._require_within(dataset, str(row.dataset), part.name)

    def _require_within(self, dataset: DatasetReplay, name: str, part: str) -> None:
        """Require that all that a part is committed to now stays within the budget on its order."""
        order = dataset.order(part)
        if order is None:
            raise BrokenRule(f"no order of {name!r} (part {part!r}) was fixed before it")
        committed = [m for r in self._drawing(name, part) for m in r.paid(in_full=True)]
        epsilon = epsilon_at(committed, order, dataset.delta)
        problem = (
            f"{name!r} (part {part!r}) is committed to ε={epsilon:.4f} on the order {order:g} that "
            f"alone admits, more than the declared ε={dataset.epsilon:g}"
        )
        require(epsilon <= dataset.epsilon + TOLERANCE, problem)

    def _drawing(self, name: str, part: str | None) -> list[ReservationReplay]:
        return [
            reservation
            for reservation in self.reservations.values()
            if reservation.dataset == name and part in (None, reservation.partition)
        ]

    def _order(self, row: Row, body: Mapping[str, Any]) -> None:
        name, part, order = str(row.dataset), body["partition"], body["order"]
        orders = self._dataset(row.dataset).orders
        require(type(order) is float and 1 < order < math.inf, f"{order!r} is no order")
        require(part is None or isinstance(part, str), "it names no part")
        every = EVERY_PART if part is None else part
        require(every not in orders, "the order was fixed before")
        orders[every] = order
        drawing = self._drawing(name, part)
        # An order chosen in view of an output admits on whichever order happens to fit.
        if body["reason"] == "migration":
            late = any(reservation.on_one_order for reservation in drawing)
            require(not late, "an order was fixed after plans that it should have admitted")
            self.notes.append(
                f"Row {row.seq}: the order {order:g} of {name!r} (part {part!r}) was fixed when "
                "the ledger came from an older schema, whose plans were admitted on whichever "
                "order fitted: for plans chosen in view of earlier outputs that was no filter."
            )
        else:
            require(body["reason"] in ("declared", "plan"), "it does not say who chose the order")
            held = any(reservation.paid(in_full=True) for reservation in drawing)
            require(not held, "an order was fixed after the first plan that it admits")

    def _attempt(self, row: Row, body: Mapping[str, Any]) -> None:
        reservation = self._reservation(row)
        require(not reservation.settled, "an attempt began after the settlement")
        attempt = whole(body["attempt"])
        expected = reservation.attempt + 1
        reservation.attempt = max(attempt, reservation.attempt)
        reservation.attempts += 1
        require(attempt == expected, f"attempt {attempt} began where {expected} was the next")

    def _charge(self, row: Row, body: Mapping[str, Any]) -> None:
        reservation = self._reservation(row)
        component, steps, attempt = body["component"], whole(body["steps"]), whole(body["attempt"])
        require(component in reservation.charged, f"the plan has no component {component!r}")
        reservation.charged[component] += steps
        self._require_newest(reservation, attempt)
        require(not reservation.settled, "steps were charged after the settlement")
        allowed = reservation.mechanisms[component].steps
        charged = reservation.charged[component]
        problem = f"{charged} steps of {component!r} are charged, {allowed} were reserved"
        require(charged <= allowed, problem)
        require(body["charged"] == reservation.charged, "its running totals do not add up")

    def _require_newest(self, reservation: ReservationReplay, attempt: int) -> None:
        require(attempt >= reservation.attempt, "an older attempt charged after a newer one")
        # Schema 1 had no rows for attempts: there one began with its first charge.
        begun = attempt == reservation.attempt or self._schema == 1
        reservation.attempts += attempt != reservation.attempt
        reservation.attempt = attempt
        require(begun, f"attempt {attempt} charged and was never begun")

    def _settle(self, row: Row, body: Mapping[str, Any]) -> None:
        reservation = self._reservation(row)
        require(not reservation.settled, "the reservation was settled before")
        reservation.settled = True
        require(body["charged"] == reservation.charged, "its totals are not what was charged")

    def _export(self, row: Row, body: Mapping[str, Any]) -> None:
        reservation = self._reservation(row)
        reservation.exports.append(str(body["manifest"]))
        require(body["run"] == reservation.run_id, "it names another run than its reservation")
        require(any(reservation.charged.values()), "an export left before anything was charged")
        for name, steps in body["used"].items():
            problem = f"the export used {steps} steps of {name!r}, fewer were charged"
            require(steps <= reservation.charged.get(name, 0), problem)
        require(body["void"] == reservation.void, "it hides whether the run was seeded")
        if reservation.void:
            self.notes.append(f"Row {row.seq}: the product of a void run was exported as void.")

    def _dataset(self, name: str | None) -> DatasetReplay:
        dataset = self.datasets.get(str(name))
        if dataset is None:
            raise BrokenRule(f"it draws on {name!r}, which was never declared")
        return dataset

    def _reservation(self, row: Row) -> ReservationReplay:
        reservation = self.reservations.get(str(row.reservation))
        if reservation is None:
            raise BrokenRule(f"it belongs to reservation {row.reservation!r}, which does not exist")
        require(row.dataset == reservation.dataset, "it names another data set's budget")
        return reservation
