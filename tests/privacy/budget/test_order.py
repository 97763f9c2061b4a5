"""One RDP order, fixed before anything is released, admits: an adaptive adversary gains nothing."""

import math

import numpy as np
import pytest

from privacy.accounting.rdp import ORDERS, RDPFilter, curve
from privacy.audit import audit_ledger
from privacy.budget import Budget, Component
from privacy.errors import BudgetRefused, InvalidRequest
from privacy.ledger import Kind, Ledger, rows
from privacy.mechanisms import DiscreteLaplace, Gaussian

DELTA = 1e-5


def figures(epsilon, steps=1):
    return DiscreteLaplace(1 / epsilon, steps)


def at_any_order(budget, held):
    """Admit at whichever order suffices: no filter."""
    return budget.admits(held)


def at(order):
    """Admit at one order."""
    return lambda budget, held: budget.share(held, order) <= 1


def largest(budget, admits, held):
    """The largest ε of one more figure that is admitted beside `held`."""
    low, high = 0.0, 2 * budget.limit
    for _ in range(40):
        middle = (low + high) / 2
        fits = admits(budget, curve([*held, figures(middle)]))
        low, high = (middle, high) if fits else (low, middle)
    return low


def greatest_delta(budget, admits, small, count):
    """δ at the budget's ε of the best adaptive adversary: exact, by optimal stopping.

    It takes up to `count` figures of ε = `small` that are admitted, one after the other, looks at
    each, and takes one large figure whenever it likes, as large as is admitted. A figure's loss is
    +ε or -ε, as randomised response's, so the summed loss walks on a lattice; δ is
    E[1 - exp(ε - loss)]+ over the strategies.
    """

    def excess(loss):
        return np.maximum(-np.expm1(budget.limit - loss), 0.0)

    truth = 1 / (1 + math.exp(-small))
    value = None
    for number in range(count, -1, -1):
        held = [figures(small, number)] if number else []
        if not admits(budget, curve(held)):
            continue
        loss = small * np.arange(-number, number + 1, 2)
        large = largest(budget, admits, held)
        p = 1 / (1 + math.exp(-large))
        ended = p * excess(loss + large) + (1 - p) * excess(loss - large)
        if value is not None:
            ended = np.maximum(ended, truth * value[1:] + (1 - truth) * value[:-1])
        value = np.maximum(ended, excess(loss))
    return float(value[0])


@pytest.mark.parametrize(
    ("epsilon", "delta", "small", "count", "broken"),
    [(1.0, 1e-5, 0.06, 20, 1.21), (1.0, 1e-5, 0.015, 274, 3.0), (10.0, 1e-4, 0.1, 427, 3.3)],
)
def test_an_adaptive_adversary_breaks_any_order_and_not_one(epsilon, delta, small, count, broken):
    budget = RDPFilter(epsilon, delta)
    assert greatest_delta(budget, at_any_order, small, count) > broken * delta
    # Its first plan may be one figure, all of them, or a large one.
    for first in (figures(small), figures(small, count), figures(epsilon / 2)):
        order = budget.best_order(curve([first]))
        assert greatest_delta(budget, at(order), small, count) <= delta


@pytest.mark.parametrize("order", [1.5, 3.0, 8.0, 20.0, 64.0])
def test_no_order_that_is_fixed_lets_it_gain(order):
    budget = RDPFilter(1.0, 1e-5)
    assert greatest_delta(budget, at(order), 0.06, 20) <= 1e-5


@pytest.fixture
def small(budget, content):
    """A data set of budget (1, δ), its first figure reserved, charged and settled."""
    budget.declare("small", 1.0, DELTA)

    def take(key, mechanism, dataset="small"):
        held = budget.reserve(
            run_id="run-1",
            dataset=dataset,
            content=content(dataset),
            unit="one image",
            records_per_unit=1,
            plan=[Component("figure", mechanism)],
            void=False,
            idempotency_key=key,
        )
        attempt = budget.begin_attempt(held.id, "first")
        budget.charge(held.id, "figure", mechanism.steps, attempt, "c")
        return budget.settle(held.id)

    return take


def test_the_budget_refuses_what_the_adversary_takes(budget, small, findings):
    """The very requests: a few small figures, then a large one that some other order admits."""
    for i in range(5):
        small(f"figure-{i}", figures(0.06))
    within, held = RDPFilter(1.0, DELTA), [figures(0.06, 5)]
    (order,) = budget.odometer("small").orders.values()
    large, allowed = (largest(within, rule, held) - 1e-6 for rule in (at_any_order, at(order)))
    assert large > allowed + 0.1
    quote = budget.quote("small", [Component("large", figures(large))])
    assert (quote.admitted, quote.in_advance, quote.fixed) == (False, True, True)
    assert quote.used > 1 > quote.together - 1e-4
    with pytest.raises(BudgetRefused, match="in advance would have been admitted"):
        small("large", figures(large))
    small("allowed", figures(allowed))
    assert findings() == []


def test_the_first_plan_fixes_the_order_at_which_it_takes_the_smallest_share(
    budget, reserve, plan, content
):
    asked = plan(10.0, 20)
    before = budget.quote("digits", asked)
    reserve(plan=asked)
    (row,) = budget.ledger.rows(kind=Kind.ORDER)
    naive = {a: 20 * a / 200 / RDPFilter(3.0, DELTA).bound[i] for i, a in enumerate(ORDERS)}
    best = min(naive, key=naive.get)
    assert row.content == {"order": best, "partition": "train", "reason": "plan"}
    assert (before.order, before.fixed) == (best, False)
    assert before.used == pytest.approx(naive[best], abs=1e-4)
    reserve("k2", plan=plan(30.0, 3))
    reserve("k3", partition="holdout", content=content("holdout"), plan=plan(3.0, 1))
    assert [r.content["partition"] for r in budget.ledger.rows(kind=Kind.ORDER)] == [
        "train",
        "holdout",
    ]
    assert list(budget.odometer("digits").orders) == ["train", "holdout"]


def test_a_plan_for_the_whole_budget_is_admitted_on_its_order(budget, content, epsilon, small):
    """A plan that uses the budget up at its best order takes all of it at that order."""
    for i, mechanism in enumerate([Gaussian(1.7), figures(0.3, 9), Gaussian(60.0, 900)]):
        whole = epsilon(mechanism)
        budget.declare(f"whole-{i}", whole, DELTA)
        small(f"whole-{i}", mechanism, dataset=f"whole-{i}")
        odometer = budget.odometer(f"whole-{i}")
        assert 0.999 < odometer.used <= 1.0
        assert odometer.left == 0.0


def test_the_share_adds_up_and_nothing_past_it_is_admitted(budget, small):
    small("a", Gaussian(12.0))
    one = budget.odometer("small").used
    for i in range(int(1 / one) - 1):
        small(f"b-{i}", Gaussian(12.0))
    assert budget.odometer("small").used == pytest.approx(int(1 / one) * one, abs=0.01)
    with pytest.raises(BudgetRefused):
        small("last", Gaussian(12.0, 2))


class TestDeclared:
    def test_an_officer_chooses_it_before_the_first_plan(self, budget, small, findings):
        budget.declare("officer", 1.0, DELTA, order=30.0)
        assert budget.declare("officer", 1.0, DELTA, order=30.0).orders == {}
        small("a", Gaussian(30.0), dataset="officer")
        (row,) = budget.ledger.rows(kind=Kind.ORDER)
        assert row.content == {"order": 30.0, "partition": None, "reason": "declared"}
        assert budget.odometer("officer").orders == {"train": 30.0}
        assert findings() == []

    def test_it_is_for_ever(self, budget, unchanged):
        budget.declare("digits", 3.0, DELTA)
        with pytest.raises(InvalidRequest, match="RDP order"):
            budget.declare("digits", 3.0, DELTA, order=30.5)

    def test_another_or_a_late_one_is_refused(self, budget, reserve):
        budget.declare("officer", 1.0, DELTA, order=30.0)
        with pytest.raises(BudgetRefused, match="order 30, for ever"):
            budget.declare("officer", 1.0, DELTA, order=31.0)
        reserve()
        with pytest.raises(BudgetRefused, match="before the first"):
            budget.declare("digits", 3.0, DELTA, order=30.0)

    @pytest.mark.parametrize("bad", [1.0, 30.5, 0.0, -3.0, math.nan, math.inf, True, "30", 1.05])
    def test_a_useless_order_is_refused_and_nothing_declared(self, budget, bad):
        before = budget.ledger.head()
        with pytest.raises(InvalidRequest, match="order"):
            budget.declare("officer", 0.01, DELTA, order=bad)
        assert budget.ledger.head() == before


class TestOfAnOlderSchema:
    """A ledger of schema 2, as the version before wrote it: without an order."""

    @pytest.fixture
    def older(self, tmp_path, monkeypatch, content):
        monkeypatch.setattr("privacy.ledger.store.SCHEMA_VERSION", 2)
        monkeypatch.setattr("privacy.budget.admission.fix_order", lambda *_: None)
        budget = Budget(Ledger.open(tmp_path / "old.db", bytes(32)))
        budget.declare("digits", 3.0, DELTA)
        for key, sigma in (("a", 10.0), ("b", 5.0)):
            held = self.reserve(budget, content(), key, Gaussian(sigma, 3))
            budget.charge(held.id, "train", 2, budget.begin_attempt(held.id, "first"), "c")
        budget.ledger.close()
        monkeypatch.undo()
        return tmp_path / "old.db"

    def reserve(self, budget, content, key, mechanism):
        return budget.reserve(
            run_id=f"run-{key}",
            dataset="digits",
            content=content,
            unit="one image",
            records_per_unit=1,
            plan=[Component("train", mechanism)],
            void=False,
            idempotency_key=key,
        )

    def test_it_is_read_as_it_is(self, older):
        reader = Ledger.open(older)
        assert audit_ledger(reader).ok
        odometer = Budget(reader).odometer("digits")
        assert odometer.orders == {} and 0 < odometer.used < 1
        assert {row.kind for row in reader.rows()}.isdisjoint({"order", "migrate"})

    def test_the_next_plan_fixes_the_order_that_suits_what_it_holds(self, older, content):
        budget = Budget(Ledger.open(older, bytes(32)))
        held = curve([Gaussian(10.0, 3), Gaussian(5.0, 3)])
        self.reserve(budget, content(), "new", figures(0.5))
        (row,) = budget.ledger.rows(kind=Kind.ORDER)
        order = RDPFilter(3.0, DELTA).best_order(held)
        assert row.content == {"order": order, "partition": "train", "reason": "migration"}
        found = audit_ledger(budget.ledger)
        assert found.ok and "no filter" in found.notes[0]
        assert found.datasets[0].orders == {"train": order}


class TestReplay:
    """What the audit, which shares no code with the budget, finds."""

    @pytest.fixture
    def append(self, budget):
        def write(kind, body, reservation=None):
            with budget.ledger.transaction() as t:
                t.append(kind, body, "digits", reservation)

        return write

    def order(self, **changes):
        return {"order": 8.0, "partition": "train", "reason": "plan", **changes}

    def test_a_plan_without_an_order(self, budget, reserve, findings, monkeypatch):
        monkeypatch.setattr("privacy.budget.admission.fix_order", lambda *_: None)
        reserve()
        (found,) = findings()
        assert "no order" in found

    def test_a_plan_that_only_another_order_admits(self, budget, small, findings, monkeypatch):
        small("figure", figures(0.06))
        large = largest(RDPFilter(1.0, DELTA), at_any_order, [figures(0.06)]) - 1e-6
        monkeypatch.setattr("privacy.budget.admission.admit", lambda *_: None)
        small("large", figures(large))
        (found,) = findings()
        assert "alone admits, more than the declared ε=1" in found

    @pytest.mark.parametrize("reason", ["plan", "declared", "migration", "hindsight"])
    def test_an_order_that_came_late(self, budget, reserve, append, findings, reason):
        reserve()
        append(Kind.ORDER, self.order(reason=reason, partition=None))
        (found,) = findings()
        assert "after" in found or "who chose" in found

    @pytest.mark.parametrize("bad", [1.0, 8, "8", True, None])
    def test_what_is_no_order(self, append, findings, bad):
        append(Kind.ORDER, self.order(order=bad))
        assert len(findings()) == 1

    def test_a_second_order(self, append, findings):
        append(Kind.ORDER, self.order())
        append(Kind.ORDER, self.order(order=9.0))
        (found,) = findings()
        assert "fixed before" in found


def test_a_newer_schema_stops_an_older_version():
    """A version that admits on any order must not append where one order admits."""
    assert rows.SCHEMA_VERSION >= 3
