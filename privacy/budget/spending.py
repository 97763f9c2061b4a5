"""What one data set has spent and promised, added up over its reservations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from privacy.accounting import rdp
from privacy.accounting.filter import RDPFilter
from privacy.accounting.rounding import round_up
from privacy.budget.records import Component, Odometer, plan_from
from privacy.ledger import Kind, Row, View
from privacy.mechanism import Mechanism

LIVE = (Kind.RESERVE, Kind.CHARGE, Kind.SETTLE)
"""The rows that move a reservation on; the newest of them holds its state."""

_DIGITS = 4


@dataclass(frozen=True)
class State:
    """Where one reservation stands, read from its first and its newest row."""

    plan: tuple[Component, ...]
    charged: dict[str, int]
    attempt: int
    settled: bool

    @classmethod
    def of(cls, opening: Row, newest: Row) -> "State":
        """Read it. O(1): every charge row holds the running totals."""
        plan = plan_from(opening.content["plan"])
        body = newest.content
        charged = body.get("charged", {})
        return cls(
            plan=plan,
            charged={part.name: int(charged.get(part.name, 0)) for part in plan},
            attempt=int(body.get("attempt", 0)),
            settled=newest.kind == Kind.SETTLE,
        )


@dataclass(frozen=True)
class Spending:
    """The mechanisms that a data set has paid for.

    Attributes:
        spent: with the steps that were charged.
        committed: those, and every step that an open reservation may still charge.
        open_runs: the runs that hold a reservation which is not settled.
    """

    spent: tuple[Mechanism, ...]
    committed: tuple[Mechanism, ...]
    open_runs: tuple[str, ...]


def read_state(view: View, opening: Row) -> State:
    """Return the state of the reservation that `opening` opened."""
    return State.of(opening, view.last_of(str(opening.reservation), LIVE) or opening)


def spending(view: View, dataset: str) -> Spending:
    """Add up the data set's reservations: two indexed look-ups each, however many charges."""
    spent: list[Mechanism] = []
    committed: list[Mechanism] = []
    open_runs: list[str] = []
    for opening in view.of(Kind.RESERVE, dataset):
        state = read_state(view, opening)
        charged = [
            part.mechanism.with_steps(state.charged[part.name])
            for part in state.plan
            if state.charged[part.name]
        ]
        spent += charged
        if state.settled:
            committed += charged
        else:
            committed += [part.mechanism for part in state.plan]
            open_runs.append(str(opening.content["run"]))
    return Spending(tuple(spent), tuple(committed), tuple(open_runs))


def epsilon_of(budget: RDPFilter, mechanisms: Sequence[Mechanism]) -> float:
    """Return ε of a composition at the budget's δ, rounded up; nothing spent is exactly zero."""
    if not mechanisms:
        return 0.0  # the conversion has a δ term that would make nothing cost something
    return round_up(budget.epsilon(rdp.curve(mechanisms)), _DIGITS)


def left_of(declared: float, committed: float) -> float:
    """Return what is left of a declared ε, rounded down and never negative."""
    if not math.isfinite(committed):
        return 0.0
    rest = Decimal(repr(declared)) - Decimal(repr(committed))
    step = Decimal(1).scaleb(-_DIGITS)
    return max(0.0, float(rest.quantize(step, rounding=ROUND_FLOOR)))


def odometer(view: View, declaration: Row) -> Odometer:
    """Return where the budget of a `declare` row stands."""
    body = declaration.content
    budget = RDPFilter(body["epsilon"], body["delta"])
    total = spending(view, str(declaration.dataset))
    spent, committed = epsilon_of(budget, total.spent), epsilon_of(budget, total.committed)
    return Odometer(
        name=str(declaration.dataset),
        epsilon=body["epsilon"],
        delta=body["delta"],
        spent=spent,
        committed=committed,
        reserved=round(committed - spent, _DIGITS),
        left=left_of(body["epsilon"], committed),
        open_reservations=len(total.open_runs),
    )
