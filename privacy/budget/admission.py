"""The rules of the budget: each raises, with an explanation, on what may not happen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from privacy import validation
from privacy.accounting import rdp
from privacy.accounting.base import round_up
from privacy.budget.facts import facts_of
from privacy.budget.identity import partitions_of
from privacy.errors import BudgetRefused, IntegrityBroken, InvalidRequest
from privacy.ledger import Kind, Row, Transaction, View
from privacy.ledger.records import Component, Odometer, Quote, Reservation, StepsExhausted
from privacy.mechanisms import Mechanism

# The rows that hold running totals, and all rows that change a reservation's state.
_TOTALS = (Kind.RESERVE, Kind.CHARGE, Kind.SETTLE)
_LIVE = (*_TOTALS, Kind.ATTEMPT)

_DIGITS = 4

# Why a part of a data set is admitted on its order.
DECLARED, FIRST_PLAN, MIGRATION = "declared", "plan", "migration"


@dataclass(frozen=True)
class State:
    """The state of one reservation."""

    plan: tuple[Component, ...]
    charged: dict[str, int]  # steps of each component charged so far
    attempt: int  # the newest attempt that was begun, 0 before the first
    settled: bool


@dataclass(frozen=True)
class Spending:
    """The mechanisms that one part of a data set has paid for."""

    spent: tuple[Mechanism, ...]  # with the steps that were charged
    # Those, and every step that an open reservation may still charge.
    committed: tuple[Mechanism, ...]
    open_runs: tuple[str, ...]  # the runs that hold a reservation which is not settled


def read_state(view: View, opening: Row) -> State:
    """Return the state of the reservation that `opening` opened, by one or two look-ups."""
    # Every charge holds the running totals, and only the newest attempt can charge. In ledgers of
    # schema 1 attempts were known by their charges alone; they count as begun.
    reservation = str(opening.reservation)
    newest = view.last_of(reservation, _LIVE) or opening
    totals = newest
    if newest.kind == Kind.ATTEMPT:
        totals = view.last_of(reservation, _TOTALS) or opening
    plan = Reservation.from_row(opening).plan
    charged = totals.content.get("charged", {})
    return State(
        plan=plan,
        charged={part.name: int(charged.get(part.name, 0)) for part in plan},
        attempt=int(newest.content.get("attempt", 0)),
        settled=newest.kind == Kind.SETTLE,
    )


def spending(view: View, dataset: str) -> dict[str, Spending]:
    """Add up a data set's reservations by part: few look-ups each, however many charges."""
    parts = {part.fingerprint: part.name for part in partitions_of(view, dataset)}
    states: dict[str, list[tuple[str, State]]] = {name: [] for name in parts.values()}
    for opening in view.of(Kind.RESERVE, dataset):
        body = opening.content
        if body["fingerprint"] not in parts:
            raise IntegrityBroken(
                f"Row {opening.seq} of the ledger charges {dataset!r} for content that was never "
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


def epsilon_of(budget: rdp.RDPFilter, mechanisms: Sequence[Mechanism]) -> float:
    """Return ε of a composition at the budget's δ, rounded up; nothing spent is exactly zero."""
    if not mechanisms:
        return 0.0  # the conversion has a δ term that would make nothing cost something
    return round_up(budget.epsilon(rdp.curve(mechanisms)), _DIGITS)


def left_of(declared: float, committed: float, used: float = 0.0) -> float:
    """Return what is left of a declared ε, rounded down and never negative; see `Odometer`."""
    if not math.isfinite(committed) or used >= 1:
        return 0.0
    whole = Decimal(repr(declared))
    rest = min(whole - Decimal(repr(committed)), whole * (1 - Decimal(repr(used))))
    step = Decimal(1).scaleb(-_DIGITS)
    return max(0.0, float(rest.quantize(step, rounding=ROUND_FLOOR)))


def _filter(declaration: Row) -> rdp.RDPFilter:
    limits = declaration.content
    return rdp.RDPFilter(limits["epsilon"], limits["delta"])


def fixed_order(view: View, dataset: str, partition: str) -> float | None:
    """Return the order that alone admits on a part of a data set, None where none is fixed."""
    row = view.by_claim(f"order:{dataset}:{partition}") or view.by_claim(f"order:{dataset}")
    return None if row is None else float(row.content["order"])


def fix_order(
    t: Transaction, declaration: Row, partition: str, before: Spending, plan: Sequence[Component]
) -> None:
    """Append the row that fixes the order of a part, where none is fixed, ahead of its first plan.

    It is the order at which the plan takes the smallest share of the budget, known before any
    output is seen. Where an older schema admitted plans, what they hold takes the plan's place.
    """
    dataset = str(declaration.dataset)
    if fixed_order(t, dataset, partition) is None:
        reason = MIGRATION if before.committed else FIRST_PLAN
        body = {"order": _order(t, declaration, partition, before, plan), "partition": partition}
        claim = f"order:{dataset}:{partition}"
        t.append(Kind.ORDER, {**body, "reason": reason}, dataset=dataset, claim=claim)


def declare_order(t: Transaction, declaration: Row, order: float) -> None:
    """Append the row by which an officer fixes the order of every part, ahead of all plans.

    Raises InvalidRequest on an order that admits nothing, and BudgetRefused where another is fixed
    or something was reserved: an order chosen in view of an output is no filter's.
    """
    dataset = str(declaration.dataset)
    _filter(declaration).require_useful(order)
    row = t.by_claim(f"order:{dataset}")
    if row is None:
        if any(t.of(Kind.RESERVE, dataset)):
            raise BudgetRefused(
                f"Plans on {dataset!r} were admitted already: its RDP order can be declared before "
                "the first one only. Leave --order out."
            )
        body = {"order": float(order), "partition": None, "reason": DECLARED}
        t.append(Kind.ORDER, body, dataset=dataset, claim=f"order:{dataset}")
    elif row.content["order"] != order:
        found = row.content["order"]
        raise BudgetRefused(f"{dataset!r} was declared with the RDP order {found:g}, for ever.")


def _order(
    view: View, declaration: Row, partition: str, before: Spending, plan: Sequence[Component]
) -> float:
    """Return the order that admits on a part, or would if the plan were reserved now."""
    fixed = fixed_order(view, str(declaration.dataset), partition)
    if fixed is not None:
        return fixed
    held = before.committed or tuple(part.mechanism for part in plan)
    return _filter(declaration).best_order(rdp.curve(held))


def is_closed(view: View, dataset: str) -> bool:
    """Return whether a data set admits nothing more."""
    return view.by_claim(f"close:{dataset}") is not None


def odometer(view: View, declaration: Row) -> Odometer:
    """Return the status of the budget of a `declare` row."""
    name, budget = str(declaration.dataset), _filter(declaration)
    parts = spending(view, name)
    spent = {part: epsilon_of(budget, total.spent) for part, total in parts.items()}
    most = max(spent.values(), default=0.0)
    committed = max((epsilon_of(budget, p.committed) for p in parts.values()), default=0.0)
    fixed = {part: fixed_order(view, name, part) for part in parts}
    used = max(
        (
            used_of(budget, total.committed, _order(view, declaration, part, total, ()))
            for part, total in parts.items()
            if total.committed
        ),
        default=0.0,
    )
    return Odometer(
        name=name,
        epsilon=budget.limit,
        delta=budget.delta,
        spent=most,
        committed=committed,
        reserved=round(committed - most, _DIGITS),
        left=left_of(budget.limit, committed, used),
        open_reservations=sum(len(total.open_runs) for total in parts.values()),
        partitions=spent,
        orders={part: order for part, order in fixed.items() if order is not None},
        used=used,
        closed=is_closed(view, name),
        facts=facts_of(view, name),
    )


def declared(view: View, name: str) -> Row:
    """Return a data set's declaration; raise BudgetRefused where there is none."""
    validation.identifier("data set's name", name)
    row = view.by_claim(f"declare:{name}")
    if row is None:
        raise BudgetRefused(
            f"{name!r} has no budget yet. Declare one: umbra budget declare {name} --epsilon E "
            "--delta D --private (or --public; --public-holdout where only the holdout is)"
        )
    return row


def opening(view: View, reservation_id: str) -> Row:
    """Return the row that opened a reservation; raise InvalidRequest where there is none."""
    validation.text_line("reservation id", reservation_id)
    row = view.first_of(reservation_id)
    if row is None or row.kind != Kind.RESERVE:
        raise InvalidRequest(f"The ledger holds no reservation {reservation_id!r}.")
    return row


def repeated(view: View, claim: str, asked: Mapping[str, Any], dataset: str | None) -> Row | None:
    """Return the row that this very call appended before, None if it is new."""
    row = view.by_claim(claim)
    if row is None:
        return None
    recorded = row.content
    different = [key for key, value in asked.items() if recorded.get(key) != value]
    if row.dataset != dataset:
        different.append("data set")
    if different:
        raise InvalidRequest(
            f"The idempotency key of row {row.seq} was used again for another request "
            f"({', '.join(different)} differ). Use a new key for a new request."
        )
    return row


def used_of(budget: rdp.RDPFilter, mechanisms: Sequence[Mechanism], order: float) -> float:
    """Return the share of the budget that mechanisms take at an order, rounded up."""
    return round_up(budget.share(rdp.curve(mechanisms), order), _DIGITS)


def quote_plan(
    view: View, declaration: Row, partition: str, before: Spending, plan: Sequence[Component]
) -> Quote:
    """Return the cost of a plan given what one part of a data set has already committed."""
    dataset, budget = str(declaration.dataset), _filter(declaration)
    closed = is_closed(view, dataset)
    asked = tuple(part.mechanism for part in plan)
    together = before.committed + asked
    committed = epsilon_of(budget, before.committed)
    order = _order(view, declaration, partition, before, plan)
    return Quote(
        asked=epsilon_of(budget, asked),
        committed=committed,
        together=epsilon_of(budget, together),
        left=left_of(budget.limit, committed, used_of(budget, before.committed, order)),
        order=order,
        fixed=fixed_order(view, dataset, partition) is not None,
        used=used_of(budget, together, order),
        admitted=budget.share(rdp.curve(together), order) <= 1 and not closed,
        in_advance=budget.admits(rdp.curve(together)) and not closed,
    )


def admit(
    view: View, declaration: Row, partition: str, before: Spending, plan: Sequence[Component]
) -> None:
    """Raise BudgetRefused where the filter does not admit a plan, or the data set is closed."""
    dataset, limits = str(declaration.dataset), declaration.content
    if is_closed(view, dataset):
        raise BudgetRefused(f"The budget of {dataset!r} was closed: nothing more is admitted.")
    quote = quote_plan(view, declaration, partition, before, plan)
    if quote.admitted:
        return
    runs = ", ".join(before.open_runs)
    late = (
        f" A plan of all of it in advance would have been admitted; later plans are on the RDP "
        f"order {quote.order:g} alone, of which they would use {100 * quote.used:.2f} %."
    )
    raise BudgetRefused(
        f"The budget of {dataset!r} does not admit this plan: it asks ε={quote.asked} at "
        f"δ={limits['delta']:g}, {quote.left} is left of ε={limits['epsilon']:g}; together with "
        f"what is committed it would be {quote.together}. Ask for fewer steps or more noise"
        + (f", or settle the open reservations of: {runs}." if runs else ".")
        + (late if quote.in_advance else "")
    )


def require_delta(declaration: Row, records: int) -> None:
    """Raise BudgetRefused on a part of so many records that δ would be 1/N or more."""
    delta = declaration.content["delta"]
    if not delta * records < 1:
        raise BudgetRefused(
            f"{declaration.dataset!r} was declared with δ={delta:g}, but δ must be below 1/N = "
            f"{1 / records:.3g}: a larger one allows a record to be published whole."
        )


def require_open(reservation_id: str, state: State) -> None:
    """Raise BudgetRefused on a settled reservation."""
    if state.settled:
        raise BudgetRefused(f"Reservation {reservation_id} is settled. Submit a new run.")


def require_chargeable(
    reservation_id: str, state: State, component: str, steps: int, attempt: int
) -> None:
    """Refuse a charge to a settled reservation, by an attempt but the newest, or too large."""
    require_open(reservation_id, state)
    if attempt < state.attempt:
        raise InvalidRequest(
            f"Attempt {attempt} of reservation {reservation_id} was overtaken by attempt "
            f"{state.attempt}: this process must stop."
        )
    if attempt > state.attempt:
        raise InvalidRequest(
            f"Attempt {attempt} of reservation {reservation_id} was not begun: a run begins one "
            "before it charges."
        )
    (reserved,) = (p.mechanism.steps for p in state.plan if p.name == component)
    left = reserved - state.charged[component]
    if steps > left:
        raise StepsExhausted(
            f"Reservation {reservation_id} has {left} of {reserved} steps of {component!r} left, "
            f"{steps} were requested. A run that has used up its steps ends with what it has."
        )


def require_covered(
    reservation: Reservation,
    charged: Mapping[str, int],
    used: Mapping[str, int] | None,
    void_allowed: bool,
) -> None:
    """Raise BudgetRefused on an export that its reservation has not paid for."""
    if not any(charged.values()):
        raise BudgetRefused(
            f"Reservation {reservation.id} has charged nothing: there is nothing to export."
        )
    for name, steps in (used or {}).items():
        reservation.component(name)
        if steps > charged[name]:
            raise BudgetRefused(
                f"The export used {steps} steps of {name!r}, reservation {reservation.id} has "
                f"charged {charged[name]}: it has not been paid for."
            )
    if reservation.void and not void_allowed:
        raise BudgetRefused(
            f"Run {reservation.run_id} was seeded: whoever knows the seed can take the noise off, "
            "so it has no privacy guarantee. Export it only as void."
        )
