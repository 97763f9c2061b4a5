import pytest

from privacy.budget import Component
from privacy.errors import BudgetRefused, InvalidRequest
from privacy.ledger import Kind
from privacy.mechanisms import Gaussian

DELTA = 1e-5


@pytest.fixture
def holdout(content):
    return {"partition": "holdout", "content": content("holdout", records=300)}


def test_each_part_has_the_whole_budget(budget, begun, reserve, plan, holdout, epsilon, findings):
    one = begun(plan=plan(10.0, 40))
    two = begun("k2", plan=plan(10.0, 30), **holdout)
    with pytest.raises(BudgetRefused):
        reserve("k3", plan=plan(10.0, 40))
    with pytest.raises(BudgetRefused):
        reserve("k4", plan=plan(10.0, 40), **holdout)
    budget.charge(one.id, "train", 5, 1, "a")
    budget.charge(two.id, "train", 7, 1, "a")
    odometer = budget.odometer("digits")
    assert odometer.partitions == {
        "train": epsilon(Gaussian(10.0, 5)),
        "holdout": epsilon(Gaussian(10.0, 7)),
    }
    assert odometer.spent == odometer.partitions["holdout"]
    assert odometer.committed == epsilon(Gaussian(10.0, 40))
    assert odometer.left == pytest.approx(3.0 - odometer.committed)
    assert odometer.open_reservations == 2
    assert findings() == []


def test_what_is_written_down(budget, reserve, content, holdout):
    reserve(**holdout)
    (row,) = budget.ledger.rows(kind=Kind.PARTITION)
    made = content("holdout", records=300)
    assert row.dataset == "digits"
    assert row.claim == f"bind:{made.fingerprint}"
    assert row.content == {
        "partition": "holdout",
        "fingerprint": made.fingerprint,
        "records": 300,
        "sketch": list(made.sketch),
    }


def test_delta_is_below_one_over_the_parts_own_n(reserve, content):
    reserve(content=content(records=99_999))
    with pytest.raises(BudgetRefused, match="below 1/N"):
        reserve("k2", partition="holdout", content=content("holdout", records=100_000))


def test_a_part_stands_for_one_content(reserve, content, holdout):
    reserve()
    reserve("k2", **holdout)
    with pytest.raises(BudgetRefused, match=r"'holdout'.* stands for other content"):
        reserve("k3", partition="holdout", content=content("later"))


def test_one_content_is_one_part(budget, reserve, content):
    reserve()
    with pytest.raises(BudgetRefused, match="content of the part 'train'"):
        reserve("k2", partition="holdout", content=content())


@pytest.mark.parametrize("shares", [1, 10, 19])
def test_parts_share_no_record(reserve, content, shares):
    reserve()
    with pytest.raises(BudgetRefused, match="'train' and 'holdout' of 'digits' share records"):
        reserve("k2", partition="holdout", content=content("holdout", shares=shares))


def test_parts_of_other_names_may_have_the_same_name(budget, reserve, content, holdout):
    budget.declare("other", 3.0, DELTA)
    reserve(**holdout)
    reserve("k2", dataset="other", partition="holdout", content=content("other"))
    assert budget.odometer("other").partitions == {"holdout": 0.0}


def test_a_key_used_for_another_part(budget, reserve, content):
    held = reserve()
    with pytest.raises(BudgetRefused, match="part 'train'"):
        reserve(partition="holdout")
    assert reserve() == held


class TestQuote:
    def test_before_anything_is_bound(self, budget, plan, epsilon, unchanged):
        quote = budget.quote("digits", plan(10.0, 20))
        alone = epsilon(Gaussian(10.0, 20))
        assert (quote.asked, quote.committed, quote.together) == (alone, 0.0, alone)
        assert (quote.left, quote.admitted) == (3.0, True)

    def test_is_what_reserving_then_does(self, budget, reserve, plan, epsilon):
        reserve(plan=plan(10.0, 20))
        for steps in range(1, 60, 7):
            quote = budget.quote("digits", plan(10.0, steps))
            assert quote.together == epsilon(Gaussian(10.0, 20 + steps))
            assert quote.committed == epsilon(Gaussian(10.0, 20))
            assert quote.left == pytest.approx(3.0 - quote.committed)
            try:
                budget.settle(reserve(f"k-{steps}", plan=plan(10.0, steps)).id)
                assert quote.admitted
            except BudgetRefused:
                assert not quote.admitted
        assert not quote.admitted

    def test_of_a_part(self, budget, reserve, plan, holdout):
        reserve(plan=plan(10.0, 40))
        reserve("k2", plan=plan(10.0, 10), **holdout)
        asked = plan(10.0, 30)
        assert not budget.quote("digits", asked).admitted
        assert budget.quote("digits", asked, "holdout").admitted
        assert budget.quote("digits", asked, "unused").committed == 0.0

    def test_beyond_every_order(self, budget):
        quote = budget.quote("digits", [Component("train", Gaussian(1e-300))])
        assert quote.asked == float("inf")
        assert not quote.admitted

    def test_of_what_was_never_declared(self, budget, plan, unchanged):
        with pytest.raises(BudgetRefused, match="umbra budget declare none"):
            budget.quote("none", plan())
        with pytest.raises(InvalidRequest, match="partition"):
            budget.quote("digits", plan(), "")


class TestSchemaOne:
    """Ledgers from before there were parts: content was bound without a sketch."""

    @pytest.fixture
    def old(self, budget, content, plan):
        body = {"fingerprint": content().fingerprint, "records": 1500}
        with budget.ledger.transaction() as t:
            t.append(Kind.BIND, body, "digits", claim=f"bind:{body['fingerprint']}")
            t.append(
                Kind.RESERVE,
                {
                    "run": "old", "unit": "one image", "records_per_unit": 1, "void": False,
                    "relation": "add/remove with zero-out", "accountant": "rdp", "spec": None,
                    "plan": [part.to_record() for part in plan(10.0, 20)], **body,
                },
                "digits", "r-old", "reserve:old",
            )  # fmt: skip
        return budget

    def test_is_the_part_train(self, old, epsilon):
        assert old.odometer("digits").partitions == {"train": 0.0}
        assert old.odometer("digits").committed == epsilon(Gaussian(10.0, 20))

    def test_its_spending_counts(self, old, reserve, plan):
        with pytest.raises(BudgetRefused, match="settle the open reservations of: old"):
            reserve(plan=plan(10.0, 40))

    def test_is_bound_again_with_its_sketch_once(self, old, reserve, content):
        reserve()
        reserve("k2")
        (row,) = old.ledger.rows(kind=Kind.PARTITION)
        assert row.content["sketch"] == list(content().sketch)
        assert row.content["partition"] == "train"
        assert old.odometer("digits").open_reservations == 3

    def test_nothing_can_be_compared_before_that(self, old, reserve, holdout):
        with pytest.raises(BudgetRefused, match="Submit a run on 'train' first"):
            reserve(**holdout)
        reserve()
        reserve("k2", **holdout)

    def test_exact_copies_are_refused_all_the_same(self, old, reserve, content):
        old.declare("copy", 3.0, DELTA)
        with pytest.raises(BudgetRefused, match="content of the data set 'digits'"):
            reserve(dataset="copy")
        with pytest.raises(BudgetRefused, match="content of the part 'train'"):
            reserve(partition="holdout")
        with pytest.raises(BudgetRefused, match="stands for other content"):
            reserve(content=content("changed"))
