import math

import pytest

from privacy.errors import BudgetRefused, InvalidRequest
from privacy.ledger import Kind

DELTA = 1e-5


class TestDeclare:
    def test_the_same_again_is_fine(self, budget):
        head = budget.ledger.head()
        assert budget.declare("digits", 3, DELTA).left == 3.0
        assert budget.ledger.head() == head

    @pytest.mark.parametrize(("epsilon", "delta"), [(4.0, DELTA), (2.0, DELTA), (3.0, 1e-6)])
    def test_another_budget_is_refused(self, budget, unchanged, epsilon, delta):
        with pytest.raises(BudgetRefused, match="ε=3, δ=1e-05"):
            budget.declare("digits", epsilon, delta)

    @pytest.mark.parametrize("delta", [1.0, 1.5, 1])
    def test_delta_is_below_one(self, budget, unchanged, delta):
        with pytest.raises(InvalidRequest, match="delta"):
            budget.declare("other", 1.0, delta)

    @pytest.mark.parametrize("name", ["", " digits", "digits\n", "a b", "é", "x" * 129, None, 1])
    def test_names_that_could_be_taken_for_another(self, budget, unchanged, name):
        with pytest.raises(InvalidRequest, match="name"):
            budget.declare(name, 1.0, DELTA)


class TestClose:
    def test_nothing_more_is_admitted(self, budget, reserve, plan):
        assert not budget.odometer("digits").closed
        assert budget.close("digits").closed
        assert budget.odometer("digits").closed
        assert not budget.quote("digits", plan()).admitted
        head = budget.ledger.head()
        with pytest.raises(BudgetRefused, match="was closed"):
            reserve()
        assert budget.ledger.head() == head

    def test_what_is_reserved_may_still_be_charged(self, budget, begun, findings):
        held = begun()
        budget.close("digits")
        assert budget.charge(held.id, "train", 4, 1, "a").charged == 4
        assert budget.begin_attempt(held.id, "second") == 2
        budget.charge(held.id, "train", 2, 2, "b")
        assert budget.settle(held.id).refunded == {"train": 4}
        budget.record_export(held.id, "a" * 64, "100 images")
        assert findings() == []

    def test_a_lost_answer_is_answered_after_it(self, budget, reserve):
        held = reserve()
        budget.close("digits")
        assert reserve() == held

    def test_twice_is_once(self, budget):
        assert budget.close("digits") == budget.close("digits")
        assert len(list(budget.ledger.rows(kind=Kind.CLOSE))) == 1

    def test_only_that_data_set(self, budget, reserve, content):
        budget.declare("other", 3.0, DELTA)
        budget.close("other")
        reserve()
        with pytest.raises(BudgetRefused, match="'other' was closed"):
            reserve("k2", dataset="other", content=content("other"))

    def test_what_was_never_declared(self, budget, unchanged):
        with pytest.raises(BudgetRefused, match="umbra budget declare none"):
            budget.close("none")

    def test_a_closed_budget_is_not_declared_again(self, budget, reserve):
        budget.close("digits")
        assert budget.declare("digits", 3.0, DELTA).closed
        with pytest.raises(BudgetRefused, match="was closed"):
            reserve()


class TestAcceptOverlap:
    def test_once_in_either_order(self, budget, findings):
        budget.declare("other", 1.0, DELTA)
        head = budget.accept_overlap("digits", "other")
        assert budget.accept_overlap("other", "digits") == head == budget.ledger.head()
        (row,) = budget.ledger.rows(kind=Kind.OVERLAP)
        assert (row.dataset, row.content) == ("digits", {"other": "other"})
        assert findings() == []

    @pytest.mark.parametrize("names", [("digits", "none"), ("none", "digits")])
    def test_both_must_be_declared(self, budget, unchanged, names):
        with pytest.raises(BudgetRefused, match="umbra budget declare none"):
            budget.accept_overlap(*names)

    def test_of_one_data_set_with_itself(self, budget, unchanged):
        with pytest.raises(InvalidRequest, match="twice"):
            budget.accept_overlap("digits", "digits")


def test_numbers_that_make_no_sense(budget, unchanged):
    for value in (0, -1.0, math.nan, math.inf, -math.inf, 5e-324, True, "1", None, 1 + 0j):
        with pytest.raises(InvalidRequest, match="epsilon"):
            budget.declare("other", value, DELTA)
        with pytest.raises(InvalidRequest, match="delta"):
            budget.declare("other", 1.0, value)
