"""Results of an audit of the ledger."""

from dataclasses import asdict, dataclass
from typing import Any

from privacy.accounting.bounds import EpsilonBounds
from privacy.accounting.guarantee import Guarantee
from privacy.ledger import Finding, Head


@dataclass(frozen=True)
class PartitionAudit:
    """What one part of a data set spent, recomputed.

    Attributes:
        name: the part's name.
        records: N of the part, None where a reservation draws on content that was never bound.
        spent: of what was charged.
        committed: of what was charged and what open reservations may still charge.
    """

    name: str
    records: int | None
    spent: EpsilonBounds
    committed: EpsilonBounds


@dataclass(frozen=True)
class DatasetAudit:
    """One data set's budget, recomputed.

    Its parts share no record, so the ε of the data set is the largest of its parts.

    Attributes:
        name: the declared name.
        epsilon: declared.
        delta: declared.
        closed: whether nothing more is admitted.
        unit: what is protected; the units of all reservations, where they differ.
        records_per_unit: the most of all reservations.
        spent: of what was charged: the largest of the parts.
        committed: of that and what open reservations may still charge: the largest of the parts.
        partitions: the parts, each by itself.
        guarantees: what the spent ε means under other relations: to one who may replace a record,
            and to a unit that owns `records_per_unit` records where that is more than one; none
            before anything was spent.
    """

    name: str
    epsilon: float
    delta: float
    closed: bool
    unit: str
    records_per_unit: int
    spent: EpsilonBounds
    committed: EpsilonBounds
    partitions: tuple[PartitionAudit, ...]
    guarantees: tuple[Guarantee, ...]


@dataclass(frozen=True)
class ReservationAudit:
    """One reservation, replayed.

    Attributes:
        id: the reservation.
        run_id: the run it was made for.
        dataset: the declared name that pays.
        partition: the part of it that pays.
        author: who reserved, as that process said; None where it said nothing.
        void: a seeded run, which has no privacy guarantee.
        settled: whether it can still charge.
        reserved: steps of each component that were admitted.
        charged: steps of each component that were charged, added up from the charge rows.
        attempts: starts of the run; in ledgers of schema 1, those that charged something.
        exports: SHA-256 of the manifests that left under it.
    """

    id: str
    run_id: str
    dataset: str
    partition: str
    author: str | None
    void: bool
    settled: bool
    reserved: dict[str, int]
    charged: dict[str, int]
    attempts: int
    exports: tuple[str, ...]


@dataclass(frozen=True)
class LedgerAudit:
    """The verdict on a ledger.

    Attributes:
        ledger_id: the random id in its first row.
        head: its newest row when the audit began, None where it could not be read.
        rows: how many were replayed.
        findings: everything broken, in the chain and in what the rows say.
        notes: what a reader should know and is not broken.
        datasets: one for each declared name (of the selected runs).
        reservations: all (of the selected runs).
    """

    ledger_id: str
    head: Head | None
    rows: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    datasets: tuple[DatasetAudit, ...]
    reservations: tuple[ReservationAudit, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not self.findings

    def to_record(self) -> dict[str, Any]:
        """Return the audit as plain JSON values."""
        return {"ok": self.ok, **asdict(self)}
