"""Results of an audit of the ledger."""

from dataclasses import asdict, dataclass
from typing import Any

from privacy.accounting.bounds import EpsilonBounds
from privacy.accounting.guarantee import Guarantee
from privacy.ledger import Finding, Head


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
    unit: str  # what is protected; the units of all reservations, where they differ
    records_per_unit: int  # the most of all reservations
    spent: EpsilonBounds  # of what was charged: the largest of the parts
    committed: EpsilonBounds  # of that and what open reservations may still charge
    partitions: tuple[PartitionAudit, ...]  # the parts, each by itself
    # Under replacement of a record, and for a unit of more than one record; none while unspent.
    guarantees: tuple[Guarantee, ...]


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
