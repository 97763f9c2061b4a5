"""The rules of the budget: each refuses, in words, what may not happen."""

from collections.abc import Mapping, Sequence
from typing import Any

from privacy.accounting import rdp
from privacy.accounting.filter import RDPFilter
from privacy.budget import checks
from privacy.budget.records import Component, Quote, Reservation, StepsExhausted
from privacy.budget.spending import Spending, State, epsilon_of, is_closed, left_of
from privacy.errors import BudgetRefused, InvalidRequest
from privacy.ledger import Kind, Row, Transaction, View


def declared(view: View, name: str) -> Row:
    """Return a data set's declaration. Raises BudgetRefused where there is none."""
    checks.name(name, "A data set's name")
    row = view.by_claim(f"declare:{name}")
    if row is None:
        raise BudgetRefused(
            f"{name!r} has no budget yet. Declare one: "
            f"umbra budget declare {name} --epsilon E --delta D"
        )
    return row


def reserve_claim(idempotency_key: str) -> str:
    """Return the claim of the row that reserves under this key."""
    return f"reserve:{idempotency_key}"


def opening(view: View, reservation_id: str) -> Row:
    """Return the row that opened a reservation. Raises InvalidRequest where there is none."""
    checks.line(reservation_id, "A reservation id")
    row = view.first_of(reservation_id)
    if row is None or row.kind != Kind.RESERVE:
        raise InvalidRequest(f"The ledger holds no reservation {reservation_id!r}.")
    return row


def repeated(view: View, claim: str, asked: Mapping[str, Any], dataset: str | None) -> Row | None:
    """Return the row that this very call appended before, None if it is new.

    Raises:
        InvalidRequest: where the key was used for another request: a wrong key must not pass for
            an answer.
    """
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


def weigh(view: View, declaration: Row, before: Spending, plan: Sequence[Component]) -> Quote:
    """Return what a plan costs beside what one part of a data set spent and promised before."""
    limits = declaration.content
    budget = RDPFilter(limits["epsilon"], limits["delta"])
    closed = is_closed(view, str(declaration.dataset))
    asked = tuple(part.mechanism for part in plan)
    together = before.committed + asked
    committed = epsilon_of(budget, before.committed)
    return Quote(
        asked=epsilon_of(budget, asked),
        committed=committed,
        together=epsilon_of(budget, together),
        left=left_of(limits["epsilon"], committed),
        admitted=budget.admits(rdp.curve(together)) and not closed,
    )


def admit(t: Transaction, declaration: Row, before: Spending, plan: Sequence[Component]) -> None:
    """Refuse a plan that the budget has no room for beside all that was admitted.

    Raises:
        BudgetRefused: where no order of the filter admits it, or the data set is closed.
    """
    dataset, limits = str(declaration.dataset), declaration.content
    if is_closed(t, dataset):
        raise BudgetRefused(
            f"The budget of {dataset!r} was closed: nothing more is admitted. What was reserved "
            "before may still be charged."
        )
    quote = weigh(t, declaration, before, plan)
    if quote.admitted:
        return
    runs = ", ".join(before.open_runs)
    raise BudgetRefused(
        f"The budget of {dataset!r} does not admit this plan: it asks ε={quote.asked} at "
        f"δ={limits['delta']:g}, {quote.left} is left of ε={limits['epsilon']:g}; together with "
        f"what is committed it would be {quote.together}. Ask for fewer steps or more noise"
        + (f", or settle the open reservations of: {runs}." if runs else ".")
    )


def require_delta(declaration: Row, records: int) -> None:
    """Refuse a part of so many records that δ would be 1/N or more. Raises BudgetRefused."""
    delta = declaration.content["delta"]
    if not delta * records < 1:
        raise BudgetRefused(
            f"{declaration.dataset!r} was declared with δ={delta:g}, but δ must be below 1/N = "
            f"{1 / records:.3g}: a larger one allows a record to be published whole."
        )


def require_open(reservation_id: str, state: State) -> None:
    """Refuse to go on with a settled reservation. Raises BudgetRefused."""
    if state.settled:
        raise BudgetRefused(
            f"Reservation {reservation_id} is settled: nothing more can be charged to it. Submit "
            "a new run."
        )


def require_chargeable(
    reservation_id: str, state: State, component: str, steps: int, attempt: int
) -> None:
    """Refuse a charge that the reservation does not cover.

    Raises:
        BudgetRefused: where it is settled.
        InvalidRequest: where the attempt was not begun, or a newer one was.
        StepsExhausted: where fewer steps are left.
    """
    require_open(reservation_id, state)
    if attempt < state.attempt:
        raise InvalidRequest(
            f"Attempt {attempt} of reservation {reservation_id} was overtaken by attempt "
            f"{state.attempt}: this process must stop."
        )
    if attempt > state.attempt:
        raise InvalidRequest(
            f"Attempt {attempt} of reservation {reservation_id} was not begun: a start of the run "
            "begins one before it charges."
        )
    (reserved,) = (p.mechanism.steps for p in state.plan if p.name == component)
    left = reserved - state.charged[component]
    if steps > left:
        raise StepsExhausted(
            f"Reservation {reservation_id} has {left} of {reserved} steps of {component!r} left, "
            f"{steps} were asked for. A run that has used up its steps ends with what it has."
        )


def require_covered(
    reservation: Reservation,
    charged: Mapping[str, int],
    used: Mapping[str, int] | None,
    void_allowed: bool,
) -> None:
    """Refuse an export that its reservation has not paid for.

    Raises:
        InvalidRequest: where `used` names a component that the plan has not.
        BudgetRefused: where nothing was charged, or less than was used, or the run is void.
    """
    if not any(charged.values()):
        raise BudgetRefused(
            f"Reservation {reservation.id} has charged nothing, so nothing private can have been "
            "made under it: there is nothing to export."
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
            "so it promises no privacy. Export it only as void."
        )
