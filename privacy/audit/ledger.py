"""The audit of a ledger: its chain, its meaning, and every ε again."""

from collections.abc import Iterable

from privacy.audit.recompute import epsilons, unit_guarantee
from privacy.audit.replay import DatasetReplay, Replay, ReservationReplay
from privacy.audit.results import DatasetAudit, LedgerAudit, ReservationAudit
from privacy.errors import IntegrityBroken, InvalidRequest
from privacy.ledger import Finding, Head, Ledger

_TOLERANCE = 1e-4
"""Every ε is rounded up at four digits before it is compared with the declared one."""


def audit_ledger(
    ledger: Ledger,
    recorded_heads: Iterable[Head] = (),
    run_id: str | None = None,
    reservation_id: str | None = None,
) -> LedgerAudit:
    """Replay the whole ledger and compute every ε again from raw parameters.

    Checked: the hash chain and the table around it; heads recorded outside; that every row
    follows the rules of its kind; that no reservation charged more than it reserved or after its
    settlement; that exports lie within what was charged; and that Opacus' RDP code finds no data
    set committed above its declared budget.

    Args:
        ledger: opened with or without its key.
        recorded_heads: heads from checkpoints and exports; they show truncation.
        run_id: report only this run's reservations and their data sets. All rows are checked.
        reservation_id: the same for one reservation.

    Raises:
        InvalidRequest: where the run or reservation asked for is not in the ledger.
        LedgerUnavailable: where the ledger cannot be read at all.
    """
    findings = ledger.verify(recorded_heads)
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
    datasets = tuple(
        _dataset(name, dataset, replay)
        for name, dataset in replay.datasets.items()
        if not narrowed or name in paying
    )
    findings += replay.findings
    findings += [finding for dataset in datasets for finding in _over_budget(dataset)]
    return LedgerAudit(
        ledger_id=ledger.ledger_id,
        head=head,
        rows=replay.rows,
        findings=tuple(findings),
        notes=(*replay.notes, *_notes(chosen, datasets)),
        datasets=datasets,
        reservations=tuple(_reservation(*item) for item in chosen.items()),
    )


def _dataset(name: str, dataset: DatasetReplay, replay: Replay) -> DatasetAudit:
    drawing = [r for r in replay.reservations.values() if r.dataset == name]
    k = max((r.records_per_unit for r in drawing), default=1)
    spent = [mechanism for r in drawing for mechanism in r.paid(in_full=False)]
    committed = [mechanism for r in drawing for mechanism in r.paid(in_full=True)]
    now = epsilons(spent, dataset.delta)
    at_most = now if spent == committed else epsilons(committed, dataset.delta)
    unit_epsilon, unit_delta = unit_guarantee(now.rdp, dataset.delta, k)
    return DatasetAudit(
        name=name,
        epsilon=dataset.epsilon,
        delta=dataset.delta,
        records=dataset.records,
        unit=", ".join(sorted({r.unit for r in drawing})),
        records_per_unit=k,
        spent=now,
        committed=at_most,
        unit_epsilon=unit_epsilon,
        unit_delta=unit_delta,
    )


def _over_budget(dataset: DatasetAudit) -> list[Finding]:
    if dataset.committed.rdp <= dataset.epsilon + _TOLERANCE:
        return []
    return [
        Finding(
            None,
            f"{dataset.name!r} is committed to ε={dataset.committed.rdp} at δ={dataset.delta:g}, "
            f"declared was ε={dataset.epsilon:g}: more was granted than there was",
        )
    ]


def _reservation(identity: str, replayed: ReservationReplay) -> ReservationAudit:
    return ReservationAudit(
        id=identity,
        run_id=replayed.run_id,
        dataset=replayed.dataset,
        void=replayed.void,
        settled=replayed.settled,
        reserved={name: m.steps for name, m in replayed.mechanisms.items()},
        charged=dict(replayed.charged),
        attempts=len(replayed.attempts),
        exports=tuple(replayed.exports),
    )


def _notes(
    reservations: dict[str, ReservationReplay], datasets: tuple[DatasetAudit, ...]
) -> list[str]:
    notes = [
        f"Run {r.run_id} was seeded: it is void and promises no privacy."
        for r in reservations.values()
        if r.void
    ]
    notes += [
        f"{d.name!r}: a unit owns up to {d.records_per_unit} records and is promised "
        f"ε={d.unit_epsilon:.4f}, δ={d.unit_delta:.3g} by group privacy."
        for d in datasets
        if d.records_per_unit > 1
    ]
    return notes
