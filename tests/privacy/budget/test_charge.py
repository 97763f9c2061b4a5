from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine, event

from privacy.errors import BudgetRefused, InvalidRequest, LedgerUnavailable
from privacy.ledger import Kind
from privacy.ledger.records import StepsExhausted
from privacy.mechanisms import Gaussian


@pytest.fixture
def instructions():
    """Count what SQLite's virtual machine executes, which is time without a clock."""

    @contextmanager
    def counting():
        counter = SimpleNamespace(count=0)

        def count():
            counter.count += 1

        def watch(_connection, cursor, *_):
            cursor.connection.set_progress_handler(count, 1)

        event.listen(Engine, "before_cursor_execute", watch)
        yield counter
        event.remove(Engine, "before_cursor_execute", watch)

    return counting


class TestAttempts:
    def test_are_counted(self, budget, reserve):
        one, two = reserve(), reserve("k2")
        assert [budget.begin_attempt(one.id, key) for key in "abc"] == [1, 2, 3]
        assert budget.begin_attempt(two.id, "a") == 1
        assert [r.content for r in budget.ledger.rows(kind=Kind.ATTEMPT, reservation=one.id)] == [
            {"attempt": n} for n in (1, 2, 3)
        ]

    def test_the_same_key_gives_the_same_number(self, budget, reserve):
        held = reserve()
        assert budget.begin_attempt(held.id, "a") == 1
        assert budget.begin_attempt(held.id, "b") == 2
        head = budget.ledger.head()
        assert budget.begin_attempt(held.id, "a") == 1
        budget.settle(held.id)
        assert budget.begin_attempt(held.id, "b") == 2
        assert budget.ledger.head() != head
        assert len(list(budget.ledger.rows(kind=Kind.ATTEMPT))) == 2

    def test_only_the_newest_charges(self, budget, begun):
        held = begun()
        budget.charge(held.id, "train", 1, 1, "a")
        budget.begin_attempt(held.id, "second")
        # Overtaken from the moment the next one began, not from its first charge.
        with pytest.raises(InvalidRequest, match="overtaken by attempt 2: this process must stop"):
            budget.charge(held.id, "train", 1, 1, "b")
        assert budget.charge(held.id, "train", 1, 2, "c").charged == 2
        with pytest.raises(InvalidRequest, match="overtaken by attempt 2"):
            budget.charge(held.id, "train", 1, 1, "d")

    def test_one_that_was_not_begun_cannot_charge(self, budget, reserve):
        held = reserve()
        with pytest.raises(InvalidRequest, match=r"Attempt 1 .* was not begun"):
            budget.charge(held.id, "train", 1, 1, "a")
        budget.begin_attempt(held.id, "first")
        with pytest.raises(InvalidRequest, match=r"Attempt 2 .* was not begun"):
            budget.charge(held.id, "train", 1, 2, "b")
        assert budget.charged_steps(held.id) == {"train": 0}

    def test_a_settled_reservation_begins_none(self, budget, reserve):
        held = reserve()
        budget.settle(held.id)
        with pytest.raises(BudgetRefused, match="settled"):
            budget.begin_attempt(held.id, "a")

    def test_totals_outlive_many_starts(self, budget, begun):
        held = begun()
        budget.charge(held.id, "train", 3, 1, "a")
        for i in range(2, 6):
            assert budget.begin_attempt(held.id, f"start-{i}") == i
        assert budget.charged_steps(held.id) == {"train": 3}
        assert budget.charge(held.id, "train", 2, 5, "b").charged == 5
        assert budget.settle(held.id).charged == {"train": 5}

    def test_a_reservation_of_schema_one_goes_on_from_its_highest(self, budget, reserve):
        held = reserve()
        body = {"component": "train", "steps": 2, "attempt": 3, "charged": {"train": 2}}
        with budget.ledger.transaction() as t:
            t.append(Kind.CHARGE, body, "digits", held.id)
        for attempt in (2, 4):
            with pytest.raises(InvalidRequest):
                budget.charge(held.id, "train", 1, attempt, f"a-{attempt}")
        assert budget.charge(held.id, "train", 1, 3, "b").charged == 3
        assert budget.begin_attempt(held.id, "next") == 4
        assert budget.charge(held.id, "train", 1, 4, "c").charged == 4


class TestCharge:
    def test_receipts_count(self, budget, begun, plan):
        held = begun(plan=plan(warm=Gaussian(50.0)))
        one = budget.charge(held.id, "train", 4, 1, "a")
        two = budget.charge(held.id, "warm", 1, 1, "b")
        three = budget.charge(held.id, "train", 6, budget.begin_attempt(held.id, "x"), "c")
        assert (one.steps, one.charged, one.left) == (4, 4, 6)
        assert (two.steps, two.charged, two.left) == (1, 1, 0)
        assert (three.steps, three.charged, three.left) == (6, 10, 0)
        assert three.head == budget.ledger.head()
        assert budget.charged_steps(held.id) == {"train": 10, "warm": 1}

    def test_no_more_than_reserved(self, budget, begun):
        held = begun()
        budget.charge(held.id, "train", 8, 1, "a")
        head = budget.ledger.head()
        with pytest.raises(StepsExhausted, match="2 of 10 steps of 'train' left"):
            budget.charge(held.id, "train", 3, 1, "b")
        assert budget.ledger.head() == head
        budget.charge(held.id, "train", 2, 1, "b")
        budget.begin_attempt(held.id, "x")
        with pytest.raises(StepsExhausted):
            budget.charge(held.id, "train", 1, 2, "c")

    def test_the_same_key_charges_once(self, budget, begun):
        held = begun()
        first = budget.charge(held.id, "train", 4, 1, "a")
        budget.charge(held.id, "train", 4, 1, "b")
        assert budget.charge(held.id, "train", 4, 1, "a") == first
        budget.begin_attempt(held.id, "x")
        assert budget.charge(held.id, "train", 4, 1, "a") == first
        budget.settle(held.id)
        assert budget.charge(held.id, "train", 4, 1, "a") == first
        assert budget.charged_steps(held.id) == {"train": 8}

    @pytest.mark.parametrize(("steps", "attempt"), [(5, 1), (4, 2)])
    def test_the_same_key_for_something_else_is_refused(self, budget, begun, steps, attempt):
        held = begun()
        budget.charge(held.id, "train", 4, 1, "a")
        budget.begin_attempt(held.id, "x")
        with pytest.raises(InvalidRequest, match="used again"):
            budget.charge(held.id, "train", steps, attempt, "a")

    def test_keys_of_two_reservations_are_apart(self, budget, begun):
        one, two = begun(), begun("k2")
        budget.charge(one.id, "train", 1, 1, "a")
        budget.charge(two.id, "train", 2, 1, "a")
        assert budget.charged_steps(two.id) == {"train": 2}

    def test_settled_and_unknown_reservations(self, budget, begun):
        held = begun()
        budget.settle(held.id)
        with pytest.raises(BudgetRefused, match="settled"):
            budget.charge(held.id, "train", 1, 1, "a")
        for call in (budget.settle, budget.charged_steps, budget.reservation):
            with pytest.raises(InvalidRequest, match="no reservation"):
                call("r-none")
        with pytest.raises(InvalidRequest, match="no reservation"):
            budget.begin_attempt("r-none", "a")
        with pytest.raises(InvalidRequest, match="no component 'warm'"):
            budget.charge(held.id, "warm", 1, 1, "a")

    @pytest.mark.parametrize("call", ["charge", "begin_attempt"])
    def test_a_lost_answer_is_answered_again(self, budget, begun, monkeypatch, call):
        """The commit succeeded and its answer did not arrive."""
        held = begun()
        real = budget.ledger.transaction

        @contextmanager
        def losing():
            with real() as t:
                yield t
            raise LedgerUnavailable("the connection was lost")

        asked = ("a",) if call == "begin_attempt" else ("train", 4, 1, "a")
        monkeypatch.setattr(budget.ledger, "transaction", losing)
        with pytest.raises(LedgerUnavailable):
            getattr(budget, call)(held.id, *asked)
        monkeypatch.undo()
        head = budget.ledger.head()
        answer = getattr(budget, call)(held.id, *asked)
        assert budget.ledger.head() == head
        assert answer == 2 or answer.charged == 4

    def test_asks_the_database_no_more_as_the_ledger_grows(self, budget, begun, plan, instructions):
        """Neither more statements, nor one that walks over the rows that lie in between."""
        held = begun(plan=plan(60.0, 300))
        budget.charge(held.id, "train", 1, 1, "first")
        with instructions() as few:
            budget.charge(held.id, "train", 1, 1, "second")
        for i in range(200):
            budget.charge(held.id, "train", 1, 1, f"charge-{i}")
        with instructions() as many:
            budget.charge(held.id, "train", 1, 1, "last")
        assert 0 < many.count <= 1.1 * few.count


class TestSettle:
    def test_gives_back_what_was_not_charged_once(self, budget, begun, plan):
        held = begun(plan=plan(warm=Gaussian(50.0)))
        budget.charge(held.id, "train", 4, 1, "a")
        first = budget.settle(held.id)
        assert first.charged == {"train": 4, "warm": 0}
        assert first.refunded == {"train": 6, "warm": 1}
        assert budget.settle(held.id) == first
        assert budget.ledger.head() == first.head

    def test_nothing_charged_costs_nothing(self, budget, begun):
        budget.settle(begun().id)
        odometer = budget.odometer("digits")
        assert (odometer.spent, odometer.committed, odometer.left) == (0.0, 0.0, 3.0)


class TestExport:
    def test_is_written_once(self, budget, begun):
        held = begun()
        budget.charge(held.id, "train", 5, 1, "a")
        head = budget.record_export(held.id, "a" * 64, "100 images")
        budget.charge(held.id, "train", 1, 1, "b")
        assert budget.record_export(held.id, "a" * 64, "100 images") == head
        (row,) = budget.ledger.rows(kind=Kind.EXPORT)
        assert row.content["used"] == {"train": 5}
        with pytest.raises(InvalidRequest, match="description differ"):
            budget.record_export(held.id, "a" * 64, "other words")

    def test_nothing_unpaid_leaves(self, budget, begun):
        held = begun()
        with pytest.raises(BudgetRefused, match="charged nothing"):
            budget.record_export(held.id, "a" * 64, "100 images")
        budget.charge(held.id, "train", 5, 1, "a")
        with pytest.raises(BudgetRefused, match="not been paid"):
            budget.record_export(held.id, "a" * 64, "100 images", used={"train": 6})
        with pytest.raises(InvalidRequest, match="no component"):
            budget.record_export(held.id, "a" * 64, "100 images", used={"warm": 1})

    def test_a_void_run_leaves_only_as_void(self, budget, begun):
        held = begun(void=True)
        budget.charge(held.id, "train", 5, 1, "a")
        with pytest.raises(BudgetRefused, match="seeded"):
            budget.record_export(held.id, "a" * 64, "100 images")
        budget.record_export(held.id, "a" * 64, "100 images", void_allowed=True)

    def test_a_newer_attempt_does_not_hide_what_was_charged(self, budget, begun):
        held = begun()
        budget.charge(held.id, "train", 5, 1, "a")
        budget.begin_attempt(held.id, "second")
        budget.record_export(held.id, "a" * 64, "100 images", used={"train": 5})
