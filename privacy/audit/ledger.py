"""The audit of a ledger: its chain, its meaning, and every ε again."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from privacy.accounting.base import round_up
from privacy.audit.datasets import audit_dataset, few_enough_for_prv, opacus_epsilon
from privacy.audit.replay import ContentsReplay, Replay, ReservationReplay, connected
from privacy.audit.results import DatasetAudit, LedgerAudit, ReservationAudit
from privacy.errors import IntegrityBroken, InvalidRequest
from privacy.ledger import Finding, Head, Ledger
from privacy.mechanisms import Mechanism


def notes(
    replay: Replay, reservations: Iterable[ReservationReplay], datasets: Sequence[DatasetAudit]
) -> list[str]:
    """Return notes on void runs, on units of many records and on data sets that share records."""
    names = {dataset.name for dataset in datasets}
    return [
        *_void(reservations),
        *_units(datasets),
        *_shared(replay, names),
    ]


def _void(reservations: Iterable[ReservationReplay]) -> Iterator[str]:
    for reservation in reservations:
        if reservation.void:
            yield f"Run {reservation.run_id} was seeded: it is void and promises no privacy."


def _units(datasets: Iterable[DatasetAudit]) -> Iterator[str]:
    for dataset in datasets:
        for guarantee in dataset.guarantees:
            if guarantee.records == dataset.records_per_unit > 1:
                yield (
                    f"{dataset.name!r}: a unit owns up to {guarantee.records} records and is "
                    f"promised ε={guarantee.epsilon}, δ={guarantee.delta:g} by group privacy "
                    f"({guarantee.method})."
                )


def _shared(replay: Replay, names: set[str]) -> Iterator[str]:
    """Basic composition: a record that several data sets hold pays for all of them."""
    contents = replay.contents
    for group in connected(contents.accepted.keys() | contents.sharing):
        if names.isdisjoint(group):
            continue
        epsilon = sum(_most_spent(replay, name) for name in group)
        delta = sum(replay.datasets[name].delta for name in group)
        yield (
            f"{', '.join(map(repr, group))} share records ({_how(contents, set(group))}): a record "
            f"that lies in all of them is promised ε={epsilon:.4f}, δ={delta:g}, which is what "
            "their budgets have spent together."
        )


def _how(contents: ContentsReplay, group: set[str]) -> str:
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


_TOLERANCE = 1e-4
"""Every ε is rounded up at four digits before it is compared with the declared one."""


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

    Raises:
        InvalidRequest: where the run or reservation asked for is not in the ledger.
        LedgerUnavailable: where the ledger cannot be read at all.
    """
    findings = ledger.verify(recorded_heads, public_key)
    replay, head = Replay(), None
    try:
        for row in ledger.rows():
            replay.feed(row)
            head = row.head
    except IntegrityBroken:
        pass  # the verification above met the same damage and has found it
    chosen = {
        identity: reservation
        for identity, reservation in replay.reservations.items()
        if run_id in (None, reservation.run_id) and reservation_id in (None, identity)
    }
    if not chosen and (run_id is not None or reservation_id is not None):
        raise InvalidRequest(
            f"The ledger at {ledger.where} holds no reservation of {run_id or reservation_id!r}."
        )
    narrowed = run_id is not None or reservation_id is not None
    paying = {reservation.dataset for reservation in chosen.values()}
    parts = replay.contents.parts()
    drawing: dict[str, list[ReservationReplay]] = defaultdict(list)
    for reservation in replay.reservations.values():
        drawing[reservation.dataset].append(reservation)
    audited = [name for name in replay.datasets if not narrowed or name in paying]
    with_prv = few_enough_for_prv(r for name in audited for r in drawing[name])
    datasets = tuple(
        audit_dataset(name, replay.datasets[name], parts[name], drawing[name], with_prv)
        for name in audited
    )
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


def _over_budget(dataset: DatasetAudit) -> list[Finding]:
    return [
        Finding(
            None,
            f"{dataset.name!r} (part {part.name!r}) is committed to ε={part.committed.rdp} at "
            f"δ={dataset.delta:g}, declared was ε={dataset.epsilon:g}: more was granted than "
            "there was",
        )
        for part in dataset.partitions
        if part.committed.rdp > dataset.epsilon + _TOLERANCE
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
