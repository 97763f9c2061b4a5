"""What can be asked of the budgets without changing anything."""

from collections.abc import Iterator, Sequence

from privacy.budget import checks, rules
from privacy.budget.binding import TRAIN
from privacy.budget.records import Component, Odometer, Quote, Reservation, checked_plan
from privacy.budget.spending import Spending, odometer, read_state, spending
from privacy.ledger import Kind, Ledger, Row


class BudgetReader:
    """The budgets of all data sets of one ledger, which may be opened for reading only."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def quote(self, dataset: str, plan: Sequence[Component], partition: str = TRAIN) -> Quote:
        """Return what a plan would cost on one part of a data set, and whether it is admitted.

        Nothing is set aside: another run may take the budget before this one reserves. That the
        content is what the name stands for, and δ < 1/N, is for `reserve` to say.

        Raises:
            InvalidRequest: on values that make no sense.
            BudgetRefused: where undeclared.
        """
        parts = checked_plan(plan)
        checks.name(partition, "A partition's name")
        with self.ledger.reading() as view:
            declaration = rules.declared(view, dataset)
            before = spending(view, dataset).get(partition, Spending((), (), ()))
            return rules.weigh(view, declaration, before, parts)

    def reservation(self, reservation_id: str) -> Reservation:
        """Return a reservation. Raises InvalidRequest where it is unknown."""
        with self.ledger.reading() as view:
            return Reservation.from_row(rules.opening(view, reservation_id))

    def reserved(self, idempotency_key: str) -> Reservation | None:
        """Return what was reserved under a key, None where nothing was: the answer may be lost."""
        checks.line(idempotency_key, "An idempotency key")
        with self.ledger.reading() as view:
            row = view.by_claim(rules.reserve_claim(idempotency_key))
            return None if row is None else Reservation.from_row(row)

    def charged_steps(self, reservation_id: str) -> dict[str, int]:
        """Return the steps charged so far, for every component of the plan.

        Raises InvalidRequest where the reservation is unknown.
        """
        with self.ledger.reading() as view:
            return read_state(view, rules.opening(view, reservation_id)).charged

    def odometer(self, name: str) -> Odometer:
        """Return what is spent, promised and left. Raises BudgetRefused where undeclared."""
        with self.ledger.reading() as view:
            return odometer(view, rules.declared(view, name))

    def show(self) -> tuple[Odometer, ...]:
        """Return the odometers of all declared data sets, in the order of their declaration."""
        with self.ledger.reading() as view:
            return tuple(odometer(view, row) for row in view.of(Kind.DECLARE))

    def history(self, name: str) -> Iterator[Row]:
        """Yield every row about a data set, oldest first: who did what and when.

        Raises BudgetRefused where undeclared.
        """
        with self.ledger.reading() as view:
            rules.declared(view, name)
        return self.ledger.rows(dataset=name)
