"""What the parts of one data set have spent and promised, added up over its reservations.

Parallel composition (McSherry 2009, "Privacy Integrated Queries", Theorem 4): neighbours differ in
one record, and the parts of a data set share no record, so the record lies in one of them. All that
was computed from the other parts is distributed alike for both neighbours, whatever was seen
before; only what was computed from this part can tell them apart. Its filter therefore holds by
itself, each part may spend the whole budget, and the ε of the data set is the largest of its parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from privacy.accounting import rdp
from privacy.accounting.filter import RDPFilter
from privacy.accounting.rounding import round_up
from privacy.budget.binding import partitions_of
from privacy.budget.records import Component, Odometer, plan_from
from privacy.errors import IntegrityBroken
from privacy.ledger import Kind, Row, View
from privacy.mechanism import Mechanism

_TOTALS = (Kind.RESERVE, Kind.CHARGE, Kind.SETTLE)
_LIVE = (*_TOTALS, Kind.ATTEMPT)
"""The rows that move a reservation on."""

_DIGITS = 4


@dataclass(frozen=True)
class State:
    """Where one reservation stands.

    Attributes:
        plan: its components.
        charged: steps of each component charged so far.
        attempt: the newest attempt that was begun, 0 before the first.
        settled: whether it is settled.
    """

    plan: tuple[Component, ...]
    charged: dict[str, int]
    attempt: int
    settled: bool


@dataclass(frozen=True)
class Spending:
    """The mechanisms that one part of a data set has paid for.

    Attributes:
        spent: with the steps that were charged.
        committed: those, and every step that an open reservation may still charge.
        open_runs: the runs that hold a reservation which is not settled.
    """

    spent: tuple[Mechanism, ...]
    committed: tuple[Mechanism, ...]
    open_runs: tuple[str, ...]


def read_state(view: View, opening: Row) -> State:
    """Return the state of the reservation that `opening` opened, by one or two look-ups.

    Every charge holds the running totals, and only the newest attempt can charge. In ledgers of
    schema 1 attempts were known by their charges alone; they count as begun.
    """
    reservation = str(opening.reservation)
    newest = view.last_of(reservation, _LIVE) or opening
    totals = newest
    if newest.kind == Kind.ATTEMPT:
        totals = view.last_of(reservation, _TOTALS) or opening
    plan = plan_from(opening.content["plan"])
    charged = totals.content.get("charged", {})
    return State(
        plan=plan,
        charged={part.name: int(charged.get(part.name, 0)) for part in plan},
        attempt=int(newest.content.get("attempt", 0)),
        settled=newest.kind == Kind.SETTLE,
    )


def spending(view: View, dataset: str) -> dict[str, Spending]:
    """Add up a data set's reservations by part: few look-ups each, however many charges.

    Raises:
        IntegrityBroken: where a reservation's content belongs to no part.
    """
    parts = {part.fingerprint: part.name for part in partitions_of(view, dataset)}
    states: dict[str, list[tuple[str, State]]] = {name: [] for name in parts.values()}
    for opening in view.of(Kind.RESERVE, dataset):
        body = opening.content
        if body["fingerprint"] not in parts:
            raise IntegrityBroken(
                f"Row {opening.seq} of the ledger draws on {dataset!r} for content that was never "
                "bound to it. Run `umbra audit`."
            )
        name = parts[body["fingerprint"]]
        states[name].append((str(body["run"]), read_state(view, opening)))
    return {name: _added_up(found) for name, found in states.items()}


def _added_up(states: Sequence[tuple[str, State]]) -> Spending:
    spent: list[Mechanism] = []
    committed: list[Mechanism] = []
    for _, state in states:
        charged = [
            part.mechanism.with_steps(state.charged[part.name])
            for part in state.plan
            if state.charged[part.name]
        ]
        spent += charged
        committed += charged if state.settled else [part.mechanism for part in state.plan]
    open_runs = tuple(run_id for run_id, state in states if not state.settled)
    return Spending(tuple(spent), tuple(committed), open_runs)


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


def is_closed(view: View, dataset: str) -> bool:
    """Return whether a data set admits nothing more."""
    return view.by_claim(f"close:{dataset}") is not None


def odometer(view: View, declaration: Row) -> Odometer:
    """Return where the budget of a `declare` row stands."""
    body, name = declaration.content, str(declaration.dataset)
    budget = RDPFilter(body["epsilon"], body["delta"])
    parts = spending(view, name)
    spent = {part: epsilon_of(budget, total.spent) for part, total in parts.items()}
    most = max(spent.values(), default=0.0)
    committed = max((epsilon_of(budget, p.committed) for p in parts.values()), default=0.0)
    return Odometer(
        name=name,
        epsilon=body["epsilon"],
        delta=body["delta"],
        spent=most,
        committed=committed,
        reserved=round(committed - most, _DIGITS),
        left=left_of(body["epsilon"], committed),
        open_reservations=sum(len(total.open_runs) for total in parts.values()),
        partitions=spent,
        closed=is_closed(view, name),
    )
