"""The budget manager: every decision is one transaction on the ledger."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from privacy import validation
from privacy.accounting import rdp
from privacy.accounting.tradeoff import trade_offs
from privacy.budget import admission as rules
from privacy.budget import facts as known
from privacy.budget import identity
from privacy.budget.facts import Facts, Shown
from privacy.budget.identity import TRAIN, Content
from privacy.errors import BudgetRefused, InvalidRequest
from privacy.ledger import Head, Kind, Ledger, Row, Transaction, View, records
from privacy.ledger.records import Component, Odometer, Quote, Receipt, Reservation, Settlement

# The accountant that admits, written into every reservation.
ADMITS = "rdp"


class Budget:
    """The budgets of all data sets of one ledger.

    A ledger that was opened for reading only serves the methods that change nothing. The object
    keeps no state of its own: any number of processes may hold one on the same ledger.

    Every method raises InvalidRequest on a malformed value, on an unknown reservation and on an
    idempotency key that was used for another request, and BudgetRefused on an undeclared data set.
    A method that raises has changed nothing, except that after LedgerUnavailable the reply may have
    been lost: repeat the call with the same idempotency key.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def declare(
        self,
        name: str,
        epsilon: float,
        delta: float,
        facts: Facts | None = None,
        *,
        order: float | None = None,
    ) -> Odometer:
        """Give a data set its whole budget, for all runs on it together, once and for ever.

        With facts, say what it is: no run can say otherwise. Everything is admitted on one RDP
        order: on `order`, one of `privacy.accounting.rdp.ORDERS`, or, without it, on that of every
        part's first plan. Declaring the same again changes nothing; raises BudgetRefused where the
        name has another budget, other facts or another order.
        """
        # δ must be below 1/N, which is not known before something is reserved.
        validation.identifier("data set's name", name)
        body = {
            "epsilon": validation.positive_number("epsilon", epsilon),
            "delta": validation.open_probability("delta", delta),
        }
        if not isinstance(facts, Facts | None):
            raise InvalidRequest(f"Facts were expected, found {type(facts).__name__}.")
        with self.ledger.transaction() as t:
            row = t.by_claim(f"declare:{name}")
            if row is None:
                row = t.append(Kind.DECLARE, body, dataset=name, claim=f"declare:{name}")
            elif row.content != body:
                declared = "ε={epsilon:g}, δ={delta:g}".format(**row.content)
                raise BudgetRefused(f"{name!r} was declared with {declared}, for ever.")
            if order is not None:
                rules.declare_order(t, row, validation.positive_number("order", order))
            if facts is not None:
                known.declare_facts(t, row, facts)
            return rules.odometer(t, row)

    def close(self, name: str) -> Odometer:
        """Admit nothing more for a data set, for ever; what is reserved may still be charged."""
        with self.ledger.transaction() as t:
            declaration = rules.declared(t, name)
            claim = f"close:{name}"
            if t.by_claim(claim) is None:
                t.append(Kind.CLOSE, {}, dataset=name, claim=claim)
            return rules.odometer(t, declaration)

    def accept_overlap(self, name: str, other: str) -> Head:
        """Accept that two data sets share records, so that for those both budgets add up.

        An exact copy stays refused. Repeated, in either order, it returns the first acceptance.
        """
        with self.ledger.transaction() as t:
            for each in (name, other):
                rules.declared(t, each)
            if name == other:
                raise InvalidRequest(f"Two data sets were expected, found {name!r} twice.")
            claim = identity.overlap_claim(name, other)
            row = t.by_claim(claim)
            if row is None:
                row = t.append(Kind.OVERLAP, {"other": other}, dataset=name, claim=claim)
            return row.head

    def reserve(
        self,
        run_id: str,
        dataset: str,
        content: Content,
        unit: str | None = None,
        *,
        partition: str = TRAIN,
        records_per_unit: int | None = None,
        plan: Sequence[Component],
        void: bool,
        idempotency_key: str,
        spec_sha256: str | None = None,
        holdout: Content | None = None,
    ) -> Reservation:
        """Set a plan's whole cost aside if the RDP filter admits it beside all that was admitted.

        The first plan of a part fixes the order that admits all later ones, in a row of its own.
        Open reservations count in full, settled ones by what they charged, and only those of the
        same part of the data set. The same idempotency key returns the first reservation.

        Args:
            content: from `content_of`, of the very records that will be used.
            unit: what is protected; the data set's facts say it, and this may repeat them. Only
                where an older version declared it, without facts, the caller says it.
            partition: the part of the data set that these records are; parts share no record.
            records_per_unit: the most records of one unit, said as `unit` is. Budgets are per
                record, the audit reports the guarantee for a unit.
            void: whether a seed makes the noise reproducible.
            spec_sha256: hash of the spec that makes the request.
            holdout: what the run will open as its holdout, paid for or not.

        Raises BudgetRefused where the name is undeclared or closed, the content is a copy or near
        copy of another data set or part, the part means other content, the run opened another
        holdout, δ ≥ 1/N, or the budget does not admit the plan; IntegrityBroken where the ledger
        does not verify.
        """
        parts = records.checked_plan(plan)
        if holdout is not None:
            _identified(holdout)
        body = {
            "run": validation.identifier("run id", run_id),
            **_identified(content),
            "relation": records.RELATION,
            "void": validation.boolean("void", void),
            "accountant": ADMITS,
            "spec": None if spec_sha256 is None else validation.sha256("spec_sha256", spec_sha256),
            "plan": [part.to_record() for part in parts],
        }
        claim = f"reserve:{validation.text_line('idempotency key', idempotency_key)}"
        validation.identifier("data set's name", dataset)
        validation.identifier("partition's name", partition)
        # Cached, and costly: not under the lock.
        rdp.curve([part.mechanism for part in parts])
        self.ledger.require_sound()
        with self.ledger.transaction() as t:
            body |= known.unit_of(t, dataset, unit, records_per_unit)
            row = rules.repeated(t, claim, body, dataset)
            if row is None:
                if holdout is not None:
                    declaration = rules.declared(t, dataset)
                    known.open_holdout(t, run_id, declaration, holdout, content)
                _require_admissible(t, dataset, partition, content, parts)
                row = t.append(Kind.RESERVE, body, dataset, f"r-{secrets.token_hex(8)}", claim)
            else:
                identity.require_part(t, dataset, partition, content)
                if holdout is not None:
                    known.require_opened(t, run_id, holdout)
            return known.reservation(t, row)

    def facts(self, name: str) -> Facts:
        """Return what an officer declared a data set to be.

        Raises BudgetRefused, with the command to type, where nobody has, or of an unknown name.
        """
        with self.ledger.reading() as view:
            return known.require_facts(view, rules.declared(view, name))

    def shown(self, reservation_id: str) -> Shown:
        """Return which images of a run may be shown now; nothing else than the ledger is asked."""
        with self.ledger.reading() as view:
            return known.shown(view, rules.opening(view, reservation_id))

    def begin_attempt(self, reservation_id: str, idempotency_key: str) -> int:
        """Begin an attempt of the run and return its number: 1, 2, 3, …

        From then on no older attempt can charge, whether it still runs or not. The same idempotency
        key, to be drawn at random, returns the same number. Raises BudgetRefused where the
        reservation is settled.
        """
        # Masks and noise of two attempts that charged in turn could be mixed up.
        validation.text_line("idempotency key", idempotency_key)
        with self.ledger.transaction() as t:
            opening = rules.opening(t, reservation_id)
            claim = f"attempt:{reservation_id}:{idempotency_key}"
            row = t.by_claim(claim)
            if row is None:
                state = rules.read_state(t, opening)
                rules.require_open(reservation_id, state)
                body = {"attempt": state.attempt + 1}
                row = t.append(Kind.ATTEMPT, body, opening.dataset, reservation_id, claim)
            return int(row.content["attempt"])

    def charge(
        self, reservation_id: str, component: str, steps: int, attempt: int, idempotency_key: str
    ) -> Receipt:
        """Spend steps before they are taken. When this returns, they are spent, on disk.

        Only the newest `attempt` can charge. The same idempotency key, drawn at random before the
        call, returns the first receipt and charges once.

        Raises InvalidRequest also on an attempt that was not begun or is not the newest,
        BudgetRefused where the reservation is settled, and StepsExhausted where fewer steps are
        left than requested.
        """
        # A key made of step numbers would let a restarted run take charged steps a second time.
        validation.text_line("idempotency key", idempotency_key)
        asked = {
            "component": validation.identifier("component's name", component),
            "steps": validation.positive_int("steps", steps),
            "attempt": validation.positive_int("attempt", attempt),
        }
        with self.ledger.transaction() as t:
            opening = rules.opening(t, reservation_id)
            reserved = Reservation.from_row(opening).component(component).mechanism.steps
            claim = f"charge:{reservation_id}:{idempotency_key}"
            row = rules.repeated(t, claim, asked, opening.dataset)
            if row is None:
                state = rules.read_state(t, opening)
                rules.require_chargeable(reservation_id, state, component, steps, attempt)
                total = {**state.charged, component: state.charged[component] + steps}
                body = {**asked, "charged": total}
                row = t.append(Kind.CHARGE, body, opening.dataset, reservation_id, claim)
        charged = row.content["charged"][component]
        return Receipt(row.head, component, steps, charged, reserved - charged)

    def settle(self, reservation_id: str, weights_sha256: str | None = None) -> Settlement:
        """End a reservation: what was never charged goes back to the budget.

        Repeated, it returns the first settlement. `weights_sha256` is that of the file of weights
        which the charges paid for, if there is one: nothing else is released under them.
        """
        said = {}
        if weights_sha256 is not None:
            said = {"weights": validation.sha256("weights_sha256", weights_sha256)}
        with self.ledger.transaction() as t:
            opening = rules.opening(t, reservation_id)
            claim = f"settle:{reservation_id}"
            row = t.by_claim(claim)
            if row is None:
                body = {"charged": rules.read_state(t, opening).charged, **said}
                row = t.append(Kind.SETTLE, body, opening.dataset, reservation_id, claim)
        charged = row.content["charged"]
        plan = Reservation.from_row(opening).plan
        return Settlement(
            row.head,
            {part.name: charged[part.name] for part in plan},
            {part.name: part.mechanism.steps - charged[part.name] for part in plan},
            row.content.get("weights"),
        )

    def settled_weights(self, reservation_id: str) -> str | None:
        """Return the sha256 of the weights that a reservation was settled with, if it was."""
        with self.ledger.reading() as view:
            opening = rules.opening(view, reservation_id)
            row = view.by_claim(f"settle:{opening.reservation}")
            return None if row is None else row.content.get("weights")

    def record_export(
        self,
        reservation_id: str,
        manifest_sha256: str,
        description: str,
        used: Mapping[str, int] | None = None,
        void_allowed: bool = False,
    ) -> Head:
        """Record the export of something made under a reservation.

        `manifest_sha256` is that of the export's manifest, which lists its files and their hashes;
        `description` a few words without paths; `used` the steps of each component that went into
        the exported weights, by default all that were charged. Raises BudgetRefused where nothing
        was charged, less than was used, or the run is void and `void_allowed` is false.
        """
        body: dict[str, Any] = {
            "manifest": validation.sha256("manifest_sha256", manifest_sha256),
            "description": validation.text_line("export's description", description),
        }
        if "/" in description or "\\" in description:
            raise InvalidRequest("An export's description must not hold a path.")
        validation.boolean("void_allowed", void_allowed)
        if used is not None:
            body["used"] = validation.steps_by_component("used", used)
        with self.ledger.transaction() as t:
            opening = rules.opening(t, reservation_id)
            charged = rules.read_state(t, opening).charged
            reservation = Reservation.from_row(opening)
            rules.require_covered(reservation, charged, used, void_allowed)
            body |= {"run": reservation.run_id, "void": reservation.void}
            claim = f"export:{reservation_id}:{manifest_sha256}"
            row = rules.repeated(t, claim, body, opening.dataset)
            if row is None:
                body.setdefault("used", charged)
                row = t.append(Kind.EXPORT, body, opening.dataset, reservation_id, claim)
            return row.head

    def quote(self, dataset: str, plan: Sequence[Component], partition: str = TRAIN) -> Quote:
        """Return what a plan would cost on one part of a data set, and whether it is admitted."""
        # Nothing is set aside: another run may take the budget before this one reserves, which
        # checks besides that the content belongs to the name, and that δ < 1/N.
        with self.ledger.reading() as view:
            return rules.quote_plan(*_question(view, dataset, plan, partition))

    def require_admissible(
        self, dataset: str, plan: Sequence[Component], partition: str = TRAIN
    ) -> None:
        """Raise BudgetRefused on a plan that `reserve` would refuse now, as far as `quote` sees."""
        # What a ledger that does not verify says is spent counts for nothing.
        self.ledger.require_sound()
        with self.ledger.reading() as view:
            rules.admit(*_question(view, dataset, plan, partition))

    def reservation(self, reservation_id: str) -> Reservation:
        """Return a reservation by its id."""
        with self.ledger.reading() as view:
            return known.reservation(view, rules.opening(view, reservation_id))

    def reserved(self, idempotency_key: str) -> Reservation | None:
        """Return what was reserved under a key, None where nothing was: a reply may be lost."""
        validation.text_line("idempotency key", idempotency_key)
        with self.ledger.reading() as view:
            row = view.by_claim(f"reserve:{idempotency_key}")
            return None if row is None else Reservation.from_row(row)

    def charged_steps(self, reservation_id: str) -> dict[str, int]:
        """Return the steps charged so far, for every component of the plan."""
        with self.ledger.reading() as view:
            return rules.read_state(view, rules.opening(view, reservation_id)).charged

    def odometer(self, name: str) -> Odometer:
        """Return what is spent, committed and left."""
        with self.ledger.reading() as view:
            return rules.odometer(view, rules.declared(view, name))

    def attack(self, name: str) -> tuple[dict[str, Any], ...]:
        """Return what an attacker could do at most after all that was charged on a data set.

        `TradeOff.to_record` for a record and, where a unit has several, for a unit, as if all had
        been planned in advance. Takes seconds, unlike the odometer.
        """
        with self.ledger.reading() as view:
            delta = rules.declared(view, name).content["delta"]
            spent = [part.spent for part in rules.spending(view, name).values()]
            said = [row.content for row in view.of(Kind.RESERVE, name)]
            facts = known.facts_of(view, name)
        declared = [] if facts is None else [facts.to_record()]
        unit = ", ".join(sorted({each["unit"] for each in declared or said}))
        most = max((each["records_per_unit"] for each in declared + said), default=1)
        curves = trade_offs(spent, delta, most)
        return tuple(curve.to_record(unit) for curve in curves)

    def show(self) -> tuple[Odometer, ...]:
        """Return the odometers of all declared data sets, in the order of their declaration."""
        with self.ledger.reading() as view:
            return tuple(rules.odometer(view, row) for row in view.of(Kind.DECLARE))

    def history(self, name: str) -> Iterator[Row]:
        """Yield every row about a data set, oldest first: who did what and when."""
        with self.ledger.reading() as view:
            rules.declared(view, name)
        return self.ledger.rows(dataset=name)


def _identified(content: Content) -> dict[str, Any]:
    if not isinstance(content, Content):
        raise InvalidRequest(
            f"A data set's content comes from content_of, found {type(content).__name__}."
        )
    return {"fingerprint": content.fingerprint, "records": content.records}


def _require_admissible(
    t: Transaction,
    dataset: str,
    partition: str,
    content: Content,
    plan: Sequence[Component],
) -> None:
    """Bind the content to its part, and raise unless the budget admits the plan on it."""
    declaration = rules.declared(t, dataset)
    rules.require_delta(declaration, content.records)
    exact = known.facts_of(t, dataset) is not None
    identity.bind(t, dataset, partition, content, exact)
    known.require_showable(t, dataset, partition, content)
    before = rules.spending(t, dataset)[partition]
    rules.admit(t, declaration, partition, before, plan)
    rules.fix_order(t, declaration, partition, before, plan)


def _question(
    view: View, dataset: str, plan: Sequence[Component], partition: str
) -> tuple[View, Row, str, rules.Spending, tuple[Component, ...]]:
    parts = records.checked_plan(plan)
    validation.identifier("partition's name", partition)
    declaration = rules.declared(view, dataset)
    before = rules.spending(view, dataset).get(partition, rules.Spending((), (), ()))
    return view, declaration, partition, before, parts
