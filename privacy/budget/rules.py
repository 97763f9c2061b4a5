"""The rules of the budget: each refuses, in words, what may not happen."""

from collections.abc import Mapping, Sequence
from typing import Any

from privacy.accounting import rdp
from privacy.accounting.filter import RDPFilter
from privacy.budget import checks
from privacy.budget.records import Component, Reservation, StepsExhausted
from privacy.budget.spending import State, epsilon_of, left_of, spending
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


def admit(t: Transaction, dataset: str, body: Mapping[str, Any], plan: Sequence[Component]) -> None:
    """Check a new reservation against all rules and bind the content to the name.

    Raises:
        InvalidRequest: where N differs from what the name was bound with.
        BudgetRefused: where a rule or the budget does not admit it.
    """
    declaration = declared(t, dataset)
    _bind(t, dataset, str(body["fingerprint"]), int(body["records"]))
    limits = declaration.content
    epsilon, delta = limits["epsilon"], limits["delta"]
    if not delta * body["records"] < 1:
        raise BudgetRefused(
            f"{dataset!r} was declared with δ={delta:g}, but δ must be below 1/N = "
            f"{1 / body['records']:.3g}: a larger one allows a record to be published whole."
        )
    budget = RDPFilter(epsilon, delta)
    before = spending(t, dataset)
    asked = tuple(part.mechanism for part in plan)
    together = before.committed + asked
    if budget.admits(rdp.curve(together)):
        return
    committed = epsilon_of(budget, before.committed)
    runs = ", ".join(before.open_runs)
    raise BudgetRefused(
        f"The budget of {dataset!r} does not admit this plan: it asks ε={epsilon_of(budget, asked)}"
        f" at δ={delta:g}, {left_of(epsilon, committed)} is left of ε={epsilon:g}; together with "
        f"what is committed it would be {epsilon_of(budget, together)}. Ask for fewer steps or "
        "more noise" + (f", or settle the open reservations of: {runs}." if runs else ".")
    )


def require_chargeable(
    reservation_id: str, state: State, component: str, steps: int, attempt: int
) -> None:
    """Refuse a charge that the reservation does not cover.

    Raises:
        BudgetRefused: where it is settled.
        InvalidRequest: where a newer attempt has charged.
        StepsExhausted: where fewer steps are left.
    """
    if state.settled:
        raise BudgetRefused(
            f"Reservation {reservation_id} is settled: nothing more can be charged to it. Submit "
            "a new run."
        )
    if attempt < state.attempt:
        raise InvalidRequest(
            f"Attempt {attempt} of reservation {reservation_id} was overtaken by attempt "
            f"{state.attempt}: this process must stop."
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
        if checks.count(steps, f"The steps used of {name!r}", least=0) > charged[name]:
            raise BudgetRefused(
                f"The export used {steps} steps of {name!r}, reservation {reservation.id} has "
                f"charged {charged[name]}: it has not been paid for."
            )
    if reservation.void and not void_allowed:
        raise BudgetRefused(
            f"Run {reservation.run_id} was seeded: whoever knows the seed can take the noise off, "
            "so it promises no privacy. Export it only as void."
        )


def _bind(t: Transaction, dataset: str, fingerprint: str, records: int) -> None:
    owner = t.by_claim(f"bind:{fingerprint}")
    if owner is not None and owner.dataset != dataset:
        raise BudgetRefused(
            f"This is the content of the data set {owner.dataset!r} under another name. A renamed "
            f"or copied data set has no budget of its own: use the name {owner.dataset!r}."
        )
    bound = t.of(Kind.BIND, dataset)
    if owner is None and bound:
        raise BudgetRefused(
            f"The name {dataset!r} stands for other content than this since it was first used. "
            "Give the changed data set a name and a budget of its own."
        )
    if owner is None:
        body = {"fingerprint": fingerprint, "records": records}
        t.append(Kind.BIND, body, dataset=dataset, claim=f"bind:{fingerprint}")
    elif owner.content["records"] != records:
        raise InvalidRequest(
            f"The data set {dataset!r} was bound with N={owner.content['records']} records, found "
            f"N={records} for the same content."
        )
