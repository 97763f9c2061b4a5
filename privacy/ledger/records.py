"""What the rows of the ledger say, as values: plans, reservations, receipts, odometers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from privacy import validation
from privacy.errors import BudgetRefused, InvalidRequest
from privacy.ledger import Head, Row
from privacy.mechanisms import MECHANISMS, Mechanism, from_record

# The neighbouring relation: one record is replaced by one without effect, so N is public.
RELATION = "add/remove with zero-out"


class StepsExhausted(BudgetRefused):
    """A reservation has no steps of this component left: the run has to end here."""


@dataclass(frozen=True)
class Facts:
    """What a data set is, as an officer declares it once: no spec can change it."""

    # What is protected, as text, and the most records that one of it owns.
    unit: str = "image"
    records_per_unit: int = 1
    # Whether its images are public in truth, and may be shown; the same of its holdout's.
    public: bool = False
    public_holdout: bool = False

    def __post_init__(self) -> None:
        validation.text_line("privacy unit", self.unit)
        validation.positive_int("records_per_unit", self.records_per_unit)
        validation.boolean("public", self.public)
        validation.boolean("public_holdout", self.public_holdout)

    def to_record(self) -> dict[str, Any]:
        """Return the facts as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        shown = {(True, True): "public", (False, True): "holdout public, the rest private"}
        shown |= {(True, False): "public, holdout private"}
        found = shown.get((self.public, self.public_holdout), "private")
        several = f" with up to {self.records_per_unit} records" * (self.records_per_unit > 1)
        return f"unit {self.unit}{several}, {found}"


@dataclass(frozen=True)
class Component:
    """One named part of a plan: a mechanism with the number of steps it may take at most."""

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
    """An admitted plan. Its whole cost is set aside until it is settled."""

    id: str  # the argument of `charge` and `settle`
    run_id: str  # the run that it was made for
    dataset: str  # the declared name that pays
    records: int  # N, treated as public
    unit: str  # what is protected, as text, such as "one image"
    records_per_unit: int  # the most records that one unit owns
    void: bool  # a seeded run: charged like any other, but without any privacy guarantee
    spec: str | None  # sha256 of the spec that made the request, where it was told
    plan: tuple[Component, ...]  # the components, with all their steps
    head: Head  # the ledger's head right after the reservation

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Read a reservation from its row."""
        body = row.content
        return cls(
            id=str(row.reservation),
            run_id=body["run"],
            dataset=str(row.dataset),
            **{
                name: body[name] for name in ("records", "unit", "records_per_unit", "void", "spec")
            },
            plan=tuple(map(Component.from_record, body["plan"])),
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
    """A charge that is durable: its steps may be taken now, once."""

    head: Head  # the ledger's head right after the charge
    component: str  # what was charged
    steps: int  # how many steps this receipt allows
    charged: int  # steps of the component charged so far, these included
    left: int  # steps of the component that may still be charged


@dataclass(frozen=True)
class Settlement:
    """The end of a reservation: steps charged and steps given back, for each component."""

    head: Head
    charged: dict[str, int]
    refunded: dict[str, int]
    weights: str | None = None  # sha256 of the weights that were paid for


@dataclass(frozen=True)
class Odometer:
    """The declared budget of a data set and its status, by RDP, recomputed from rows.

    What is guaranteed, however later plans were chosen in view of earlier outputs, is the declared
    pair. ε of several runs is computed as if all had been planned in advance.
    """

    # The parts of a data set share no record, so each may spend the whole budget. What is said here
    # holds for the part that is furthest.

    name: str  # the declared name
    epsilon: float  # declared
    delta: float  # declared; every ε here is at this δ
    spent: float  # ε of all charged steps, rounded up; of the part that spent most
    committed: float  # ε once all open reservations are charged in full, rounded up
    reserved: float  # committed − spent: what settling the open reservations may give back at most
    # The smaller of ε − committed and of ε (1 − used), rounded down. ε does not add up exactly: a
    # plan that costs a little more or less than this may be admitted or not.
    left: float
    open_reservations: int  # how many are not settled
    partitions: dict[str, float]  # ε of all charged steps of each part, by its name
    orders: dict[str, float]  # the RDP order that admits on each part, where one is fixed
    # The share of the budget that is committed at the part's order, rounded up: it alone decides
    # what is still admitted, and adds up exactly. 1 is all.
    used: float
    closed: bool  # whether nothing more is admitted
    # What it is; None where an older version declared it, and no officer has said so yet.
    facts: Facts | None = None


@dataclass(frozen=True)
class Quote:
    """What a plan would cost now on one part of a data set, by RDP."""

    asked: float  # ε of the plan alone, rounded up
    committed: float  # ε that the part is committed to without it, rounded up
    together: float  # ε of both, rounded up: less than their sum, for ε does not add up exactly
    left: float  # of the declared ε, as in Odometer
    order: float  # the RDP order that admits on the part, or that this plan would fix
    fixed: bool  # whether it is fixed already
    used: float  # the share of the budget at that order that both would take, rounded up
    admitted: bool  # whether a reservation would be admitted
    # Whether one plan of both, fixed in advance of all outputs, would be: the order that suits both
    # could have been chosen.
    in_advance: bool


def checked_plan(plan: Sequence[Component]) -> tuple[Component, ...]:
    """Return the plan as it will be read back; raise InvalidRequest where it is no valid one."""
    components = tuple(plan) if isinstance(plan, Sequence) else ()
    if not components or not all(isinstance(part, Component) for part in components):
        raise InvalidRequest("A plan is one or more components, found something else.")
    names = [part.name for part in components]
    if len(set(names)) != len(names):
        raise InvalidRequest(f"The components of a plan need different names, found {names}.")
    # An object that came through pickle was never checked by its own constructor.
    return tuple(Component.from_record(part.to_record()) for part in components)
