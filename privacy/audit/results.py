"""What an audit of the ledger hands back."""

from dataclasses import asdict, dataclass
from typing import Any

from privacy.ledger import Finding, Head


@dataclass(frozen=True)
class Epsilons:
    """ε of one composition at one δ, by code that shares nothing with the one that admitted.

    All three are upper bounds, rounded up.

    Attributes:
        rdp: Rényi DP computed by Opacus.
        pld: privacy loss distributions of dp-accounting; None where it could not resolve them.
        prv: upper bound of prv-accountant; None where it could not resolve δ.
    """

    rdp: float
    pld: float | None
    prv: float | None


@dataclass(frozen=True)
class DatasetAudit:
    """One data set's budget, recomputed.

    Attributes:
        name: the declared name.
        epsilon: declared.
        delta: declared.
        records: N, None before the first reservation.
        unit: what is protected; the units of all reservations, where they differ.
        records_per_unit: the most of all reservations.
        spent: of what was charged.
        committed: of what was charged and what open reservations may still charge.
        unit_epsilon: k·ε of `spent.rdp`: what a unit that owns k records is promised.
        unit_delta: k·e^{(k−1)ε}·δ, at most 1.
    """

    name: str
    epsilon: float
    delta: float
    records: int | None
    unit: str
    records_per_unit: int
    spent: Epsilons
    committed: Epsilons
    unit_epsilon: float
    unit_delta: float


@dataclass(frozen=True)
class ReservationAudit:
    """One reservation, replayed.

    Attributes:
        id: the reservation.
        run_id: the run it was made for.
        dataset: the declared name that pays.
        void: a seeded run, which promises no privacy.
        settled: whether it can still charge.
        reserved: steps of each component that were admitted.
        charged: steps of each component that were charged, added up from the charge rows.
        attempts: starts of the run that charged something.
        exports: SHA-256 of the manifests that left under it.
    """

    id: str
    run_id: str
    dataset: str
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
        datasets: one for each declared name (of the runs asked for).
        reservations: all (of the runs asked for).
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
