"""What the rows say, replayed by rules of its own.

Nothing here calls the budget: a bug there must not be able to hide itself. Only the vocabulary is
shared: kinds of rows and mechanisms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from privacy.errors import InvalidRequest
from privacy.ledger import Finding, Kind, Row
from privacy.mechanism import Mechanism, from_record, positive_number


class _Broken(Exception):
    """A row breaks a rule."""


@dataclass
class DatasetReplay:
    """A declared name while its rows go by."""

    epsilon: float
    delta: float
    fingerprint: str | None = None
    records: int | None = None


@dataclass
class ReservationReplay:
    """A reservation while its rows go by."""

    run_id: str
    dataset: str
    void: bool
    unit: str
    records_per_unit: int
    mechanisms: dict[str, Mechanism]
    charged: dict[str, int]
    attempts: list[int] = field(default_factory=list)
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


class Replay:
    """Feed it every row in order; it gathers data sets, reservations and findings."""

    def __init__(self) -> None:
        self.rows = 0
        self.datasets: dict[str, DatasetReplay] = {}
        self.reservations: dict[str, ReservationReplay] = {}
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self._names: dict[str, str] = {}
        self._rules = {
            Kind.GENESIS.value: self._genesis,
            Kind.DECLARE.value: self._declare,
            Kind.BIND.value: self._bind,
            Kind.RESERVE.value: self._reserve,
            Kind.CHARGE.value: self._charge,
            Kind.SETTLE.value: self._settle,
            Kind.EXPORT.value: self._export,
        }

    def feed(self, row: Row) -> None:
        """Take one row in; whatever it holds, it never raises."""
        self.rows += 1
        rule = self._rules.get(row.kind)
        try:
            if rule is None:
                raise _Broken(f"it has an unknown kind, {row.kind!r}")
            rule(row, row.content)
        except _Broken as broken:
            self.findings.append(Finding(row.seq, str(broken)))
        except (KeyError, TypeError, ValueError, AttributeError, InvalidRequest) as error:
            self.findings.append(Finding(row.seq, f"its body cannot be understood: {error!r}"))

    def _genesis(self, row: Row, body: Mapping[str, Any]) -> None:
        _require(row.seq == 1, "a ledger begins only once")

    def _declare(self, row: Row, body: Mapping[str, Any]) -> None:
        name = str(row.dataset)
        _require(name not in self.datasets, f"{name!r} was given a second budget")
        epsilon = positive_number("epsilon", body["epsilon"])
        delta = positive_number("delta", body["delta"])
        _require(delta < 1, "δ is not below 1")
        self.datasets[name] = DatasetReplay(epsilon, delta)

    def _bind(self, row: Row, body: Mapping[str, Any]) -> None:
        name, fingerprint = str(row.dataset), body["fingerprint"]
        owner = self._names.setdefault(fingerprint, name)
        _require(owner == name, f"{name!r} is the content of {owner!r} under another name")
        _require(name in self.datasets, f"{name!r} was never declared")
        dataset = self.datasets[name]
        _require(dataset.fingerprint is None, f"{name!r} was bound to other content before")
        dataset.fingerprint, dataset.records = fingerprint, _whole(body["records"])

    def _reserve(self, row: Row, body: Mapping[str, Any]) -> None:
        identity = str(row.reservation)
        _require(identity not in self.reservations, "the reservation's id was used before")
        mechanisms = {part["name"]: from_record(part["mechanism"]) for part in body["plan"]}
        _require(len(mechanisms) == len(body["plan"]) > 0, "its plan is empty or repeats a name")
        # Known from here on, whatever else is wrong: what it charged was spent.
        self.reservations[identity] = ReservationReplay(
            run_id=str(body["run"]),
            dataset=str(row.dataset),
            void=body["void"] is not False,
            unit=str(body["unit"]),
            records_per_unit=_whole(body["records_per_unit"]),
            mechanisms=mechanisms,
            charged=dict.fromkeys(mechanisms, 0),
        )
        dataset = self.datasets.get(str(row.dataset))
        if dataset is None:
            raise _Broken(f"it draws on {row.dataset!r}, which was never declared")
        _require(body["fingerprint"] == dataset.fingerprint, "its content is not what was bound")
        _require(body["records"] == dataset.records, "its N is not what was bound")
        _require(dataset.delta * _whole(body["records"]) < 1, "δ is not below 1/N")

    def _charge(self, row: Row, body: Mapping[str, Any]) -> None:
        reservation = self._reservation(row)
        component, steps, attempt = body["component"], _whole(body["steps"]), body["attempt"]
        _require(component in reservation.charged, f"the plan has no component {component!r}")
        reservation.charged[component] += steps
        previous = reservation.attempts[-1] if reservation.attempts else 1
        _require(_whole(attempt) >= previous, "an older attempt charged after a newer one")
        if attempt not in reservation.attempts:
            reservation.attempts.append(attempt)
        _require(not reservation.settled, "steps were charged after the settlement")
        allowed = reservation.mechanisms[component].steps
        _require(
            reservation.charged[component] <= allowed,
            f"{reservation.charged[component]} steps of {component!r} are charged, {allowed} "
            "were reserved",
        )
        _require(body["charged"] == reservation.charged, "its running totals do not add up")

    def _settle(self, row: Row, body: Mapping[str, Any]) -> None:
        reservation = self._reservation(row)
        _require(not reservation.settled, "the reservation was settled before")
        reservation.settled = True
        _require(body["charged"] == reservation.charged, "its totals are not what was charged")

    def _export(self, row: Row, body: Mapping[str, Any]) -> None:
        reservation = self._reservation(row)
        reservation.exports.append(str(body["manifest"]))
        _require(body["run"] == reservation.run_id, "it names another run than its reservation")
        _require(any(reservation.charged.values()), "an export left before anything was charged")
        for name, steps in body["used"].items():
            _require(
                steps <= reservation.charged.get(name, 0),
                f"the export used {steps} steps of {name!r}, fewer were charged",
            )
        _require(body["void"] == reservation.void, "it hides whether the run was seeded")
        if reservation.void:
            self.notes.append(f"Row {row.seq}: the product of a void run was exported as void.")

    def _reservation(self, row: Row) -> ReservationReplay:
        reservation = self.reservations.get(str(row.reservation))
        if reservation is None:
            raise _Broken(f"it belongs to reservation {row.reservation!r}, which does not exist")
        _require(row.dataset == reservation.dataset, "it names another data set's budget")
        return reservation


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise _Broken(problem)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise _Broken(f"a whole number of at least 1 was expected, found {value!r}")
    return value
