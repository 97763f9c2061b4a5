"""What the rows of the ledger say, as values: plans, reservations, receipts, odometers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from privacy import validation
from privacy.errors import BudgetRefused, InvalidRequest
from privacy.ledger import Head, Row
from privacy.mechanisms import MECHANISMS, Mechanism, from_record

RELATION = "add/remove with zero-out"
"""The neighbouring relation: one record is replaced by one without effect, so N is public."""


class StepsExhausted(BudgetRefused):
    """A reservation has no steps of this component left: the run has to end here."""


@dataclass(frozen=True)
class Component:
    """One named part of a plan: a mechanism with the number of steps it may take at most.

    Raises InvalidRequest on a bad name or something that is not a mechanism.
    """

    name: str
    mechanism: Mechanism

    def __post_init__(self) -> None:
        validation.identifier("component's name", self.name)
        # The very types: a subclass could record other parameters than it is accounted with.
        if type(self.mechanism) not in MECHANISMS.values():
            raise InvalidRequest(
                f"Component {self.name!r} needs a mechanism, found {type(self.mechanism).__name__}."
            )

    def to_record(self) -> dict[str, Any]:
        """Return the component as plain JSON values."""
        return {"name": self.name, "mechanism": self.mechanism.to_record()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read back what `to_record` wrote."""
        return cls(record["name"], from_record(record["mechanism"]))


@dataclass(frozen=True)
class Reservation:
    """An admitted plan. Its whole cost is set aside until it is settled.

    Attributes:
        id: the argument of `charge` and `settle`.
        run_id: the run that it was made for.
        dataset: the declared name that pays.
        records: N, treated as public.
        unit: what is protected, as text, such as "one image".
        records_per_unit: the most records that one unit owns.
        void: a seeded run: charged like any other, but without any privacy guarantee.
        plan: the components, with all their steps.
        head: the ledger's head right after the reservation.
    """

    id: str
    run_id: str
    dataset: str
    records: int
    unit: str
    records_per_unit: int
    void: bool
    plan: tuple[Component, ...]
    head: Head

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Read a reservation from its row."""
        body = row.content
        return cls(
            id=str(row.reservation),
            run_id=body["run"],
            dataset=str(row.dataset),
            records=body["records"],
            unit=body["unit"],
            records_per_unit=body["records_per_unit"],
            void=body["void"],
            plan=plan_from(body["plan"]),
            head=row.head,
        )

    def component(self, name: str) -> Component:
        """Return a component by name. Raises InvalidRequest where the plan has none of it."""
        for component in self.plan:
            if component.name == name:
                return component
        names = ", ".join(component.name for component in self.plan)
        raise InvalidRequest(
            f"Reservation {self.id} has no component {name!r}; its plan holds: {names}."
        )


@dataclass(frozen=True)
class Receipt:
    """A charge that is durable: its steps may be taken now, once.

    Attributes:
        head: the ledger's head right after the charge.
        component: what was charged.
        steps: how many steps this receipt allows.
        charged: steps of the component charged so far, these included.
        left: steps of the component that may still be charged.
    """

    head: Head
    component: str
    steps: int
    charged: int
    left: int


@dataclass(frozen=True)
class Settlement:
    """The end of a reservation: steps charged and steps given back, for each component."""

    head: Head
    charged: dict[str, int]
    refunded: dict[str, int]


@dataclass(frozen=True)
class Odometer:
    """The declared budget of a data set and its status, by RDP, recomputed from rows.

    The parts of a data set share no record, so each may spend the whole budget (see
    `privacy.budget.admission`). What is said here holds for the part that is furthest.

    Attributes:
        name: the declared name.
        epsilon: declared.
        delta: declared; every ε here is at this δ.
        spent: ε of all charged steps, rounded up; of the part that spent most.
        committed: ε once all open reservations are charged in full, rounded up; of the part that
            is committed to most.
        reserved: committed − spent: what settling the open reservations may give back at most.
        left: ε − committed, rounded down. ε does not add up exactly: a plan that costs a little
            more than this may still be admitted.
        open_reservations: how many are not settled.
        partitions: ε of all charged steps of each part that was ever used, by its name.
        closed: whether nothing more is admitted.
    """

    name: str
    epsilon: float
    delta: float
    spent: float
    committed: float
    reserved: float
    left: float
    open_reservations: int
    partitions: dict[str, float]
    closed: bool


@dataclass(frozen=True)
class Quote:
    """What a plan would cost now on one part of a data set, by RDP.

    Attributes:
        asked: ε of the plan alone, rounded up.
        committed: ε that the part is committed to without it, rounded up.
        together: ε of both, rounded up: less than their sum, for ε does not add up exactly.
        left: declared ε − committed, rounded down.
        admitted: whether a reservation would be admitted.
    """

    asked: float
    committed: float
    together: float
    left: float
    admitted: bool


def plan_from(records: Sequence[Mapping[str, Any]]) -> tuple[Component, ...]:
    """Read a plan from its records."""
    return tuple(Component.from_record(record) for record in records)


def checked_plan(plan: Sequence[Component]) -> tuple[Component, ...]:
    """Return the plan as it will be read back from the ledger.

    Raises InvalidRequest where it is empty, repeats a name, or holds what its own constructors
    would refuse: an object that came through pickle was never checked by them.
    """
    components = tuple(plan) if isinstance(plan, Sequence) else ()
    if not components or not all(isinstance(part, Component) for part in components):
        raise InvalidRequest("A plan is one or more components, found something else.")
    names = [part.name for part in components]
    if len(set(names)) != len(names):
        raise InvalidRequest(f"The components of a plan need different names, found {names}.")
    return plan_from([part.to_record() for part in components])
