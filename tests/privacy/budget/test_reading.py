import pytest

from privacy.budget import Budget
from privacy.errors import BudgetRefused, IntegrityBroken, InvalidRequest
from privacy.ledger import Kind, Ledger
from privacy.mechanisms import Gaussian

KEY = bytes(range(32))


def test_odometer(budget, begun, plan, epsilon):
    held = begun(plan=plan(10.0, 20, warm=Gaussian(12.0)))
    budget.charge(held.id, "train", 5, 1, "a")
    odometer = budget.odometer("digits")
    assert odometer.spent == epsilon(Gaussian(10.0, 5))
    assert odometer.committed == epsilon(Gaussian(10.0, 20), Gaussian(12.0))
    assert odometer.reserved == pytest.approx(odometer.committed - odometer.spent)
    assert odometer.left == pytest.approx(3.0 - odometer.committed)
    assert odometer.open_reservations == 1
    assert odometer.partitions == {"train": odometer.spent}
    with pytest.raises(BudgetRefused, match="umbra budget declare none"):
        budget.odometer("none")


def test_show_and_history(budget, begun):
    budget.declare("other", 1.0, 1e-5)
    held = begun()
    budget.charge(held.id, "train", 5, 1, "a")
    budget.close("digits")
    assert [o.name for o in budget.show()] == ["digits", "other"]
    assert [r.kind for r in budget.history("digits")] == [
        "declare", "partition", "order", "reserve", "attempt", "charge", "close",
    ]  # fmt: skip
    with pytest.raises(BudgetRefused, match="umbra budget declare none"):
        budget.history("none")


def test_history_says_who(tmp_path, budget, reserve):
    budget.ledger.close()
    with_author = Ledger.open(tmp_path / "ledger.db", KEY, author="alice")
    budget.ledger = with_author
    held = reserve()
    Budget(Ledger.open(tmp_path / "ledger.db", KEY, author="bob")).begin_attempt(held.id, "a")
    assert [row.author for row in budget.history("digits")] == [
        None,
        "alice",
        "alice",
        "alice",
        "bob",
    ]


def test_reading_needs_no_key(budget, reserve, plan, tmp_path):
    held = reserve()
    reader = Budget(Ledger.open(tmp_path / "ledger.db"))
    assert reader.show() == budget.show()
    assert reader.quote("digits", plan()) == budget.quote("digits", plan())
    for call in (
        lambda: reader.declare("other", 1.0, 1e-5),
        lambda: reader.close("digits"),
        lambda: reader.begin_attempt(held.id, "a"),
        lambda: reader.settle(held.id),
    ):
        with pytest.raises(InvalidRequest, match="reading only"):
            call()


def test_spending_on_content_that_was_never_bound_is_not_overlooked(budget, reserve):
    """A row that only a bug could write: the sum must not go on without it."""
    held = reserve()
    body = next(budget.ledger.rows(kind=Kind.RESERVE)).content
    with budget.ledger.transaction() as t:
        t.append(Kind.RESERVE, {**body, "fingerprint": "forged"}, "digits", "r-forged")
    with pytest.raises(IntegrityBroken, match="never bound"):
        budget.odometer("digits")
    with pytest.raises(IntegrityBroken, match="never bound"):
        reserve("k2")
    assert budget.settle(held.id).charged == {"train": 0}


def test_a_reservation_is_found_by_its_key(budget, reserve):
    held = reserve()
    key = next(iter(budget.ledger.rows(kind=Kind.RESERVE))).claim.removeprefix("reserve:")
    assert budget.reserved(key) == held
    assert budget.reserved("another") is None
