"""The audit of a ledger: its chain, its meaning, and every ε again."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from privacy.accounting import EpsilonBounds, informative_epsilon
from privacy.accounting.base import round_up
from privacy.accounting.guarantee import Guarantee, group, replace_one
from privacy.accounting.tradeoff import trade_offs
from privacy.audit import replay as replaying
from privacy.audit.opacus import opacus_epsilon
from privacy.audit.replay import EVERY_PART, UNBOUND, Replay, ReservationReplay
from privacy.errors import IntegrityBroken, InvalidRequest
from privacy.ledger import Finding, Head, Ledger
from privacy.mechanisms import Mechanism


@dataclass(frozen=True)
class PartitionAudit:
    """What one part of a data set spent, recomputed."""

    name: str
    # N of the part, None where a reservation draws on content that was never bound.
    records: int | None
    spent: EpsilonBounds  # of what was charged
    committed: EpsilonBounds  # of what was charged and what open reservations may still charge


@dataclass(frozen=True)
class DatasetAudit:
    """One data set's budget, recomputed.

    Its parts share no record, so the ε of the data set is the largest of its parts.
    """

    name: str
    epsilon: float  # declared, as δ is
    delta: float
    closed: bool  # whether nothing more is admitted
    orders: dict[str, float]  # the RDP order that alone admits, by part
    unit: str  # what is protected, as declared, or as all reservations say
    records_per_unit: int  # the most that anybody said
    spent: EpsilonBounds  # of what was charged: the largest of the parts
    committed: EpsilonBounds  # of that and what open reservations may still charge
    partitions: tuple[PartitionAudit, ...]  # the parts, each by itself
    # Under replacement of a record, and for a unit of more than one record; none while unspent.
    guarantees: tuple[Guarantee, ...]
    # What an attacker could do at most to a record and to a unit of several: `TradeOff.to_record`.
    attack: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class ReservationAudit:
    """One reservation, replayed."""

    id: str
    run_id: str
    dataset: str  # the declared name that pays
    partition: str  # the part of it that pays
    author: str | None  # who reserved, as that process said; None where it said nothing
    void: bool  # a seeded run, which has no privacy guarantee
    settled: bool  # it cannot charge any more
    reserved: dict[str, int]  # steps of each component that were admitted
    charged: dict[str, int]  # steps of each component, added up from the charge rows
    attempts: int  # starts of the run; in ledgers of schema 1, those that charged something
    exports: tuple[str, ...]  # SHA-256 of the manifests that left under it


@dataclass(frozen=True)
class LedgerAudit:
    """The verdict on a ledger."""

    ledger_id: str  # the random id in its first row
    head: Head | None  # its newest row when the audit began, None where it could not be read
    rows: int  # how many were replayed
    findings: tuple[Finding, ...]  # everything broken, in the chain and in what the rows say
    notes: tuple[str, ...]  # what a reader should know and is not broken
    datasets: tuple[DatasetAudit, ...]  # one for each declared name (of the selected runs)
    reservations: tuple[ReservationAudit, ...]  # all (of the selected runs)

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not self.findings

    def to_record(self) -> dict[str, Any]:
        """Return the audit as plain JSON values."""
        return {"ok": self.ok, **asdict(self)}


def epsilons(mechanisms: Sequence[Mechanism], delta: float, with_prv: bool = True) -> EpsilonBounds:
    """Return ε of the composition of `mechanisms` at `delta`, rounded up.

    Unlike `privacy.accounting`, RDP is Opacus': code that shares nothing with the code that
    admitted. PLD and PRV are None where they cannot resolve the composition, PRV also unless
    `with_prv`.
    """
    if not mechanisms:
        return EpsilonBounds(0.0, 0.0, 0.0)
    return EpsilonBounds(
        rdp=round_up(opacus_epsilon(mechanisms, delta)),
        prv=informative_epsilon("prv", tuple(mechanisms), delta) if with_prv else None,
        pld=informative_epsilon("pld", tuple(mechanisms), delta),
    )


# PRV takes seconds for every different mechanism on every part; RDP, which decides, and PLD take a
# tenth of one.
_MOST_FOR_PRV = 8


def few_enough_for_prv(drawing: Iterable[ReservationReplay]) -> bool:
    """Return whether PRV can be computed in reasonable time as well."""
    different = {
        (r.dataset, r.partition, r.settled, mechanism.with_steps(1))
        for r in drawing
        for mechanism in r.mechanisms.values()
    }
    return len(different) <= _MOST_FOR_PRV


def audit_dataset(
    name: str,
    dataset: replaying.DatasetReplay,
    parts: Sequence[replaying.PartReplay],
    drawing: Sequence[ReservationReplay],
    with_prv: bool,
) -> DatasetAudit:
    """Compute a data set's budget again from its parts and the reservations that draw on it."""
    records: dict[str, int | None] = {part.name: part.records for part in parts}
    if any(reservation.partition == UNBOUND for reservation in drawing):
        records[UNBOUND] = None
    by_part = {part: [r for r in drawing if r.partition == part] for part in records}
    partitions = tuple(
        _partition(part, records[part], found, dataset.delta, with_prv)
        for part, found in by_part.items()
    )
    # Of what runs of an older version said and what the officer declared, the larger counts.
    said = [(r.unit, r.records_per_unit) for r in drawing]
    facts = [] if dataset.facts is None else [dataset.facts]
    most = max((k for _, k in facts + said), default=1)
    spent = [_mechanisms(found, in_full=False) for found in by_part.values()]
    unit = ", ".join(sorted({unit for unit, _ in facts or said}))
    return DatasetAudit(
        name=name,
        epsilon=dataset.epsilon,
        delta=dataset.delta,
        closed=dataset.closed,
        orders=dataset.orders,
        unit=unit,
        records_per_unit=most,
        spent=_largest([part.spent for part in partitions]),
        committed=_largest([part.committed for part in partitions]),
        partitions=partitions,
        guarantees=_guarantees([s for s in spent if s], dataset.delta, most),
        attack=tuple(c.to_record(unit) for c in trade_offs(spent, dataset.delta, most)),
    )


def _partition(
    name: str,
    records: int | None,
    drawing: Sequence[ReservationReplay],
    delta: float,
    with_prv: bool,
) -> PartitionAudit:
    spent, committed = _mechanisms(drawing, in_full=False), _mechanisms(drawing, in_full=True)
    now = epsilons(spent, delta, with_prv)
    at_most = now if spent == committed else epsilons(committed, delta, with_prv)
    return PartitionAudit(name, records, spent=now, committed=at_most)


def _mechanisms(drawing: Iterable[ReservationReplay], in_full: bool) -> list[Mechanism]:
    return [mechanism for r in drawing for mechanism in r.paid(in_full)]


def _guarantees(
    spent: Sequence[Sequence[Mechanism]], delta: float, records_per_unit: int
) -> tuple[Guarantee, ...]:
    if not spent:
        return ()
    # The record that is replaced and the one that replaces it lie in one part.
    replaced = max((replace_one(part, delta) for part in spent), key=lambda found: found.epsilon)
    if records_per_unit == 1:
        return (replaced,)
    # A unit may own records in several parts, so what was spent on all of them counts.
    everything = [mechanism for part in spent for mechanism in part]
    return replaced, group(everything, delta, records_per_unit)


def _largest(parts: Sequence[EpsilonBounds]) -> EpsilonBounds:
    """Return the largest of every accountant, None where it could not resolve one of the parts."""
    pld = [part.pld for part in parts]
    prv = [part.prv for part in parts]
    return EpsilonBounds(
        rdp=max((part.rdp for part in parts), default=0.0),
        pld=None if None in pld else max(filter(None, pld), default=0.0),
        prv=None if None in prv else max(filter(None, prv), default=0.0),
    )


def notes(
    replay: Replay, reservations: Iterable[ReservationReplay], datasets: Sequence[DatasetAudit]
) -> list[str]:
    """Return notes on void runs, on units of many records and on data sets that share records."""
    void = [
        f"Run {reservation.run_id} was seeded: it is void and has no privacy guarantee."
        for reservation in reservations
        if reservation.void
    ]
    names = {dataset.name for dataset in datasets}
    return [*void, *_units(datasets), *_shared(replay, names)]


def _units(datasets: Iterable[DatasetAudit]) -> Iterator[str]:
    for dataset in datasets:
        for guarantee in dataset.guarantees:
            if guarantee.records == dataset.records_per_unit > 1:
                yield (
                    f"{dataset.name!r}: a unit owns up to {guarantee.records} records and is "
                    f"guaranteed ε={guarantee.epsilon}, δ={guarantee.delta:g} by group privacy "
                    f"({guarantee.method})."
                )


def _shared(replay: Replay, names: set[str]) -> Iterator[str]:
    """Basic composition: a record that several data sets hold pays for all of them."""
    contents = replay.contents
    for sharing in replaying.connected(contents.accepted.keys() | contents.sharing):
        if names.isdisjoint(sharing):
            continue
        epsilon = sum(_most_spent(replay, name) for name in sharing)
        delta = sum(replay.datasets[name].delta for name in sharing)
        names_shown = ", ".join(map(repr, sharing))
        yield (
            f"{names_shown} share records ({_how(contents, set(sharing))}): a record in all of "
            f"them is protected by ε={epsilon:.4f}, δ={delta:g}, their budgets' spending together."
        )


def _how(contents: replaying.ContentsReplay, group: set[str]) -> str:
    accepted = [
        f"accepted in row {row.seq}" + (f" by {row.author}" if row.author else "")
        for pair, row in contents.accepted.items()
        if pair <= group
    ]
    if any(pair <= group and pair not in contents.accepted for pair in contents.sharing):
        accepted.append("a few of them, as their sketches show")
    return "; ".join(accepted)


def _most_spent(replay: Replay, name: str) -> float:
    spent: dict[str, list[Mechanism]] = {}
    for reservation in replay.reservations.values():
        if reservation.dataset == name:
            spent.setdefault(reservation.partition, []).extend(reservation.paid(in_full=False))
    delta = replay.datasets[name].delta
    return max((round_up(opacus_epsilon(m, delta)) for m in spent.values() if m), default=0.0)


def audit_ledger(
    ledger: Ledger,
    recorded_heads: Iterable[Head] = (),
    run_id: str | None = None,
    reservation_id: str | None = None,
    public_key: str | None = None,
) -> LedgerAudit:
    """Replay the whole ledger and compute every ε again from raw parameters.

    Checked: the hash chain, its signatures and the table around it; heads recorded outside; that
    every row follows the rules of its kind; that no reservation charged more than it reserved,
    after its settlement or by an attempt that was overtaken; that no content has two names and no
    record lies in two parts; that exports lie within what was charged; and that Opacus' RDP code
    finds no part of a data set committed above the declared budget.

    Args:
        ledger: opened with or without its key.
        recorded_heads: heads from checkpoints and exports; they show truncation.
        run_id: report only this run's reservations and their data sets. All rows are checked.
        reservation_id: the same for one reservation.
        public_key: the key that the ledger must be signed by, in hex, as known from elsewhere.

    Raises InvalidRequest where the requested run or reservation is not in the ledger.
    """
    findings = ledger.verify(recorded_heads, public_key)
    replay, head = _replay(ledger)
    chosen = {
        identity: reservation
        for identity, reservation in replay.reservations.items()
        if run_id in (None, reservation.run_id) and reservation_id in (None, identity)
    }
    narrowed = run_id is not None or reservation_id is not None
    if narrowed and not chosen:
        raise InvalidRequest(
            f"The ledger at {ledger.where} holds no reservation of {run_id or reservation_id!r}."
        )
    paying = {reservation.dataset for reservation in chosen.values()}
    audited = [name for name in replay.datasets if not narrowed or name in paying]
    datasets = _datasets(replay, audited)
    findings += replay.findings
    findings += [finding for dataset in datasets for finding in _over_budget(dataset)]
    return LedgerAudit(
        ledger_id=ledger.ledger_id,
        head=head,
        rows=replay.rows,
        findings=tuple(findings),
        notes=(*replay.notes, *notes(replay, chosen.values(), datasets)),
        datasets=datasets,
        reservations=tuple(_reservation(*item) for item in chosen.items()),
    )


def _replay(ledger: Ledger) -> tuple[Replay, Head | None]:
    replay, head = Replay(), None
    try:
        for row in ledger.rows():
            replay.feed(row)
            head = row.head
    except IntegrityBroken:
        pass  # the chain's verification met the same damage and has found it
    return replay, head


def _datasets(replay: Replay, audited: Sequence[str]) -> tuple[DatasetAudit, ...]:
    parts = replay.contents.parts()
    drawing: dict[str, list[ReservationReplay]] = defaultdict(list)
    for reservation in replay.reservations.values():
        drawing[reservation.dataset].append(reservation)
    with_prv = few_enough_for_prv(r for name in audited for r in drawing[name])
    return tuple(
        audit_dataset(name, replay.datasets[name], parts[name], drawing[name], with_prv)
        for name in audited
    )


def _over_budget(dataset: DatasetAudit) -> list[Finding]:
    # Where an order was fixed the replay has held every plan to it, which is stricter.
    most, held = dataset.epsilon + replaying.TOLERANCE, dataset.orders
    free = [p for p in dataset.partitions if held.keys().isdisjoint((p.name, EVERY_PART))]
    over = [part for part in free if part.committed.rdp > most]
    return [
        Finding(
            None,
            f"{dataset.name!r} (part {part.name!r}) is committed to ε={part.committed.rdp} at "
            f"δ={dataset.delta:g}, more than the declared ε={dataset.epsilon:g}",
        )
        for part in over
    ]


def _reservation(identity: str, replayed: ReservationReplay) -> ReservationAudit:
    return ReservationAudit(
        id=identity,
        run_id=replayed.run_id,
        dataset=replayed.dataset,
        partition=replayed.partition,
        author=replayed.author,
        void=replayed.void,
        settled=replayed.settled,
        reserved={name: m.steps for name, m in replayed.mechanisms.items()},
        charged=dict(replayed.charged),
        attempts=replayed.attempts,
        exports=tuple(replayed.exports),
    )
