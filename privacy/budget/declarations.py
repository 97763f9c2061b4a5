"""What an officer decides about a data set: its budget, what it shares with others, its end."""

from privacy.budget import checks, rules
from privacy.budget.binding import overlap_claim
from privacy.budget.reading import BudgetReader
from privacy.budget.records import Odometer
from privacy.budget.spending import odometer
from privacy.errors import BudgetRefused, InvalidRequest
from privacy.ledger import Head, Kind
from privacy.mechanism import positive_number


class Declarations(BudgetReader):
    """The part of `Budget` that is used between runs."""

    def declare(self, name: str, epsilon: float, delta: float) -> Odometer:
        """Give a data set its whole budget, once and for ever.

        Args:
            name: the data set's name in specs.
            epsilon: the most that all runs on it together may spend.
            delta: the one δ of the data set; must be below 1/N when something is reserved.

        Raises:
            InvalidRequest: on a name or number that makes no sense.
            BudgetRefused: where the name has another budget already. The same again is fine.
        """
        checks.name(name, "A data set's name")
        body = {
            "epsilon": positive_number("epsilon", epsilon),
            "delta": checks.probability_like(delta, "delta"),
        }
        with self.ledger.transaction() as t:
            row = t.by_claim(f"declare:{name}")
            if row is None:
                row = t.append(Kind.DECLARE, body, dataset=name, claim=f"declare:{name}")
            elif row.content != body:
                old = row.content
                raise BudgetRefused(
                    f"{name!r} was declared with ε={old['epsilon']:g}, δ={old['delta']:g}, and a "
                    "declared budget does not change. Use it as it is."
                )
            return odometer(t, row)

    def close(self, name: str) -> Odometer:
        """Admit nothing more for a data set, for ever; what is reserved may still be charged.

        The same again is fine. Raises BudgetRefused where undeclared.
        """
        with self.ledger.transaction() as t:
            declaration = rules.declared(t, name)
            claim = f"close:{name}"
            if t.by_claim(claim) is None:
                t.append(Kind.CLOSE, {}, dataset=name, claim=claim)
            return odometer(t, declaration)

    def accept_overlap(self, name: str, other: str) -> Head:
        """Accept that two data sets share records, so that for those both budgets add up.

        Without it, content of which a good part lies in another data set is refused. The same
        again, in either order, returns the first acceptance. An exact copy stays refused.

        Raises:
            InvalidRequest: where both names are one.
            BudgetRefused: where one is undeclared.
        """
        with self.ledger.transaction() as t:
            for each in (name, other):
                rules.declared(t, each)
            if name == other:
                raise InvalidRequest(f"Two data sets were expected, found {name!r} twice.")
            claim = overlap_claim(name, other)
            row = t.by_claim(claim)
            if row is None:
                row = t.append(Kind.OVERLAP, {"other": other}, dataset=name, claim=claim)
            return row.head
