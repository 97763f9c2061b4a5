import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.accounting import accountant
from privacy.accounting.rounding import round_up
from privacy.budget import Budget, Component, StepsExhausted
from privacy.errors import BudgetRefused, InvalidRequest, LedgerUnavailable
from privacy.ledger import Kind, Ledger
from privacy.mechanism import Gaussian, SubsampledGaussian

KEY = bytes(range(32))
DELTA = 1e-5


@pytest.fixture
def budget(tmp_path):
    ledger = Ledger.open(tmp_path / "ledger.db", KEY)
    budget = Budget(ledger)
    budget.declare("digits", 3.0, DELTA)
    yield budget
    ledger.close()


def plan(sigma=10.0, steps=10, **more):
    parts = [Component("train", Gaussian(sigma, steps))]
    return parts + [Component(name, mechanism) for name, mechanism in more.items()]


def reserve(budget, key="k1", **changes):
    asked = {
        "run_id": "run-1",
        "dataset": "digits",
        "fingerprint": "print-1",
        "records": 1500,
        "unit": "one image",
        "records_per_unit": 1,
        "plan": plan(),
        "void": False,
        "idempotency_key": key,
    }
    return budget.reserve(**{**asked, **changes})


@pytest.fixture
def unchanged(budget):
    """The rows stay as they were while a bad request is refused."""
    before = list(budget.ledger.rows())
    yield
    assert list(budget.ledger.rows()) == before
    assert budget.ledger.verify() == []


def epsilon(*mechanisms):
    return round_up(accountant("rdp").epsilon(mechanisms, DELTA))


class TestDeclare:
    def test_the_same_again_is_fine(self, budget):
        head = budget.ledger.head()
        assert budget.declare("digits", 3, DELTA).left == 3.0
        assert budget.ledger.head() == head

    @pytest.mark.parametrize(("epsilon", "delta"), [(4.0, DELTA), (2.0, DELTA), (3.0, 1e-6)])
    def test_another_budget_is_refused(self, budget, unchanged, epsilon, delta):
        with pytest.raises(BudgetRefused, match="ε=3, δ=1e-05"):
            budget.declare("digits", epsilon, delta)

    @pytest.mark.parametrize(
        "value", [0, -1.0, math.nan, math.inf, -math.inf, 5e-324, True, "1", None, 1 + 0j]
    )
    def test_numbers_that_make_no_sense(self, budget, unchanged, value):
        with pytest.raises(InvalidRequest, match="epsilon"):
            budget.declare("other", value, DELTA)
        with pytest.raises(InvalidRequest, match="delta"):
            budget.declare("other", 1.0, value)

    @pytest.mark.parametrize("delta", [1.0, 1.5, 1])
    def test_delta_is_below_one(self, budget, unchanged, delta):
        with pytest.raises(InvalidRequest, match="delta"):
            budget.declare("other", 1.0, delta)

    @pytest.mark.parametrize("name", ["", " digits", "digits\n", "a b", "é", "x" * 129, None, 1])
    def test_names_that_could_be_taken_for_another(self, budget, unchanged, name):
        with pytest.raises(InvalidRequest, match="name"):
            budget.declare(name, 1.0, DELTA)


class TestReserve:
    def test_what_is_written_down(self, budget):
        mechanism = SubsampledGaussian(0.25, 1.9, 400)
        asked = [Component("train", mechanism), Component("warm", Gaussian(5.0))]
        budget.declare("big", 100.0, DELTA)
        held = reserve(
            budget, dataset="big", plan=asked, void=True, records_per_unit=3, spec_sha256="a" * 64
        )
        row = next(budget.ledger.rows(reservation=held.id))
        assert row.head == held.head == budget.ledger.head()
        assert row.content == {
            "run": "run-1",
            "fingerprint": "print-1",
            "records": 1500,
            "unit": "one image",
            "records_per_unit": 3,
            "relation": "add/remove with zero-out",
            "void": True,
            "accountant": "rdp",
            "spec": "a" * 64,
            "plan": [
                {
                    "name": "train",
                    "mechanism": {
                        "type": "subsampled_gaussian",
                        "sampling_probability": 0.25,
                        "noise_multiplier": 1.9,
                        "steps": 400,
                    },
                },
                {
                    "name": "warm",
                    "mechanism": {"type": "gaussian", "noise_multiplier": 5.0, "steps": 1},
                },
            ],
        }
        assert held.plan == tuple(asked)
        assert budget.reservation(held.id) == held

    def test_undeclared_names_the_command(self, budget, unchanged):
        with pytest.raises(BudgetRefused, match="umbra budget declare mnist --epsilon E --delta D"):
            reserve(budget, dataset="mnist")

    @pytest.mark.parametrize("records", [100_000, 100_001, 10**9])
    def test_delta_is_below_one_over_n(self, budget, unchanged, records):
        with pytest.raises(BudgetRefused, match="below 1/N"):
            reserve(budget, records=records)

    def test_delta_just_below_one_over_n(self, budget):
        reserve(budget, records=99_999)

    def test_content_under_another_name_is_refused(self, budget):
        reserve(budget)
        budget.declare("copy", 3.0, DELTA)
        with pytest.raises(BudgetRefused, match="content of the data set 'digits'"):
            reserve(budget, "k2", dataset="copy")
        assert len(list(budget.ledger.rows(kind=Kind.BIND))) == 1

    def test_other_content_under_the_name_is_refused(self, budget):
        reserve(budget)
        with pytest.raises(BudgetRefused, match="stands for other content"):
            reserve(budget, "k2", fingerprint="print-2")

    def test_another_n_for_the_same_content_is_refused(self, budget):
        reserve(budget)
        with pytest.raises(InvalidRequest, match="N=1500"):
            reserve(budget, "k2", records=1499)

    def test_a_refused_plan_binds_nothing(self, budget, unchanged):
        with pytest.raises(BudgetRefused):
            reserve(budget, plan=plan(0.1))

    @pytest.mark.parametrize(
        "change",
        [
            {"records": 0}, {"records": -5}, {"records": 1500.0}, {"records": True},
            {"records": math.nan}, {"records_per_unit": 0}, {"records_per_unit": 1.5},
            {"plan": []}, {"plan": [Gaussian(1.0)]}, {"plan": plan() + plan()},
            {"unit": ""}, {"unit": "a\nb"}, {"run_id": ""}, {"run_id": "../x"},
            {"void": 0}, {"void": None}, {"fingerprint": ""}, {"fingerprint": None},
            {"idempotency_key": ""}, {"idempotency_key": None}, {"idempotency_key": "x" * 300},
            {"dataset": ""}, {"spec_sha256": "zz"},
        ],
    )  # fmt: skip
    def test_bad_requests_change_nothing(self, budget, unchanged, change):
        with pytest.raises(InvalidRequest):
            reserve(budget, **change)

    @pytest.mark.parametrize("mechanism", [None, 1.0, {"type": "gaussian"}, "gaussian"])
    def test_a_component_needs_a_mechanism(self, mechanism):
        with pytest.raises(InvalidRequest, match="mechanism"):
            Component("train", mechanism)

    def test_refusal_says_asked_and_left_rounded_up(self, budget):
        held = reserve(budget, plan=plan(10.0, 20))
        budget.charge(held.id, "train", 20, 1, "c")
        budget.settle(held.id)
        with pytest.raises(BudgetRefused) as caught:
            reserve(budget, "k2", plan=plan(3.0, 4))
        text = str(caught.value)
        assert f"asks ε={epsilon(Gaussian(3.0, 4))}" in text
        assert f"would be {epsilon(Gaussian(10.0, 20), Gaussian(3.0, 4))}" in text
        assert f"{math.floor((3 - epsilon(Gaussian(10.0, 20))) * 1e4) / 1e4} is left" in text

    def test_open_reservations_count_in_full_and_settled_ones_by_charges(self, budget):
        first = reserve(budget, plan=plan(10.0, 40))
        with pytest.raises(BudgetRefused, match="open reservations of: run-1"):
            reserve(budget, "k2", plan=plan(10.0, 40))
        budget.charge(first.id, "train", 10, 1, "c")
        budget.settle(first.id)
        reserve(budget, "k2", plan=plan(10.0, 30))
        with pytest.raises(BudgetRefused):
            reserve(budget, "k3", plan=plan(10.0, 10))

    def test_budgets_of_data_sets_are_apart(self, budget):
        budget.declare("other", 3.0, DELTA)
        reserve(budget, plan=plan(10.0, 40))
        reserve(budget, "k2", dataset="other", fingerprint="print-2", plan=plan(10.0, 40))
        assert budget.odometer("other").committed == budget.odometer("digits").committed

    def test_the_same_key_returns_the_first_reservation(self, budget):
        first = reserve(budget, plan=plan(10.0, 40))
        assert reserve(budget, plan=plan(10.0, 40)) == first
        budget.settle(first.id)
        assert reserve(budget, plan=plan(10.0, 40)) == first
        with pytest.raises(InvalidRequest, match="plan differ"):
            reserve(budget, plan=plan(10.0, 39))

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        moves=st.lists(
            st.tuples(st.sampled_from([4.0, 7.0, 12.0]), st.integers(1, 30), st.integers(0, 30)),
            max_size=6,
        ),
        seed=st.integers(0, 2**60),
    )
    def test_never_more_than_declared(self, budget, moves, seed):
        """Whatever is asked, a naive sum over what was granted stays within the budget."""
        name = f"set-{seed}-{len(list(budget.ledger.rows(kind=Kind.DECLARE)))}"
        budget.declare(name, 2.0, DELTA)
        granted, rdp = [], accountant("rdp")
        for i, (sigma, steps, charged) in enumerate(moves):
            asked = {"dataset": name, "fingerprint": name, "plan": plan(sigma, steps)}
            fits = rdp.epsilon([*granted, Gaussian(sigma, steps)], DELTA) <= 2.0
            try:
                held = reserve(budget, f"{name}-{i}", **asked)
            except BudgetRefused:
                assert not fits
                continue
            assert fits
            taken = min(charged, steps)
            if taken:
                budget.charge(held.id, "train", taken, 1, "c")
                granted.append(Gaussian(sigma, taken))
            budget.settle(held.id)
        assert budget.odometer(name).spent == (
            round_up(rdp.epsilon(granted, DELTA)) if granted else 0
        )


class TestCharge:
    def test_receipts_count(self, budget):
        held = reserve(budget, plan=plan(warm=Gaussian(50.0)))
        one = budget.charge(held.id, "train", 4, 1, "a")
        two = budget.charge(held.id, "warm", 1, 1, "b")
        three = budget.charge(held.id, "train", 6, 2, "c")
        assert (one.steps, one.charged, one.left) == (4, 4, 6)
        assert (two.steps, two.charged, two.left) == (1, 1, 0)
        assert (three.steps, three.charged, three.left) == (6, 10, 0)
        assert three.head == budget.ledger.head()
        assert budget.charged_steps(held.id) == {"train": 10, "warm": 1}

    def test_no_more_than_reserved(self, budget):
        held = reserve(budget)
        budget.charge(held.id, "train", 8, 1, "a")
        head = budget.ledger.head()
        with pytest.raises(StepsExhausted, match="2 of 10 steps of 'train' left"):
            budget.charge(held.id, "train", 3, 1, "b")
        assert budget.ledger.head() == head
        budget.charge(held.id, "train", 2, 1, "b")
        with pytest.raises(StepsExhausted):
            budget.charge(held.id, "train", 1, 2, "c")

    def test_the_same_key_charges_once(self, budget):
        held = reserve(budget)
        first = budget.charge(held.id, "train", 4, 1, "a")
        budget.charge(held.id, "train", 4, 1, "b")
        assert budget.charge(held.id, "train", 4, 1, "a") == first
        budget.settle(held.id)
        assert budget.charge(held.id, "train", 4, 1, "a") == first
        assert budget.charged_steps(held.id) == {"train": 8}

    @pytest.mark.parametrize(("steps", "attempt"), [(5, 1), (4, 2)])
    def test_the_same_key_for_something_else_is_refused(self, budget, steps, attempt):
        held = reserve(budget)
        budget.charge(held.id, "train", 4, 1, "a")
        with pytest.raises(InvalidRequest, match="used again"):
            budget.charge(held.id, "train", steps, attempt, "a")

    def test_keys_of_two_reservations_are_apart(self, budget):
        one, two = reserve(budget), reserve(budget, "k2")
        budget.charge(one.id, "train", 1, 1, "a")
        budget.charge(two.id, "train", 2, 1, "a")
        assert budget.charged_steps(two.id) == {"train": 2}

    def test_an_overtaken_attempt_cannot_charge(self, budget):
        held = reserve(budget)
        assert budget.next_attempt(held.id) == 1
        budget.charge(held.id, "train", 1, 1, "a")
        assert budget.next_attempt(held.id) == 2
        budget.charge(held.id, "train", 1, 2, "b")
        with pytest.raises(InvalidRequest, match="overtaken by attempt 2"):
            budget.charge(held.id, "train", 1, 1, "c")

    def test_settled_and_unknown_reservations(self, budget):
        held = reserve(budget)
        budget.settle(held.id)
        with pytest.raises(BudgetRefused, match="settled"):
            budget.charge(held.id, "train", 1, 1, "a")
        for call in (budget.settle, budget.next_attempt, budget.charged_steps, budget.reservation):
            with pytest.raises(InvalidRequest, match="no reservation"):
                call("r-none")
        with pytest.raises(InvalidRequest, match="no component 'warm'"):
            budget.charge(held.id, "warm", 1, 1, "a")

    @pytest.mark.parametrize(
        "change",
        [
            {"steps": 0}, {"steps": -1}, {"steps": 1.0}, {"steps": math.nan}, {"steps": True},
            {"steps": 2**60}, {"attempt": 0}, {"attempt": -1}, {"attempt": 1.5},
            {"component": ""}, {"component": None}, {"idempotency_key": ""},
            {"reservation_id": ""}, {"reservation_id": None},
        ],
    )  # fmt: skip
    def test_bad_requests_change_nothing(self, budget, change):
        held = reserve(budget)
        before = list(budget.ledger.rows())
        asked = {
            "reservation_id": held.id, "component": "train", "steps": 1, "attempt": 1,
            "idempotency_key": "a",
        }  # fmt: skip
        with pytest.raises(InvalidRequest):
            budget.charge(**{**asked, **change})
        assert list(budget.ledger.rows()) == before

    def test_a_lost_answer_is_answered_again(self, budget, monkeypatch):
        """The commit succeeded and its answer did not arrive."""
        held = reserve(budget)
        real = budget.ledger.transaction

        def losing():
            from contextlib import contextmanager

            @contextmanager
            def run():
                with real() as t:
                    yield t
                raise LedgerUnavailable("the connection was lost")

            return run()

        monkeypatch.setattr(budget.ledger, "transaction", losing)
        with pytest.raises(LedgerUnavailable):
            budget.charge(held.id, "train", 4, 1, "a")
        monkeypatch.undo()
        assert budget.charge(held.id, "train", 4, 1, "a").charged == 4
        assert budget.charged_steps(held.id) == {"train": 4}


class TestSettle:
    def test_gives_back_what_was_not_charged_once(self, budget):
        held = reserve(budget, plan=plan(warm=Gaussian(50.0)))
        budget.charge(held.id, "train", 4, 1, "a")
        first = budget.settle(held.id)
        assert first.charged == {"train": 4, "warm": 0}
        assert first.refunded == {"train": 6, "warm": 1}
        assert budget.settle(held.id) == first
        assert budget.ledger.head() == first.head

    def test_nothing_charged_costs_nothing(self, budget):
        budget.settle(reserve(budget).id)
        odometer = budget.odometer("digits")
        assert (odometer.spent, odometer.committed, odometer.left) == (0.0, 0.0, 3.0)


class TestReading:
    def test_odometer(self, budget):
        held = reserve(budget, plan=plan(10.0, 20, warm=Gaussian(12.0)))
        budget.charge(held.id, "train", 5, 1, "a")
        odometer = budget.odometer("digits")
        assert odometer.spent == epsilon(Gaussian(10.0, 5))
        assert odometer.committed == epsilon(Gaussian(10.0, 20), Gaussian(12.0))
        assert odometer.reserved == pytest.approx(odometer.committed - odometer.spent)
        assert odometer.left == pytest.approx(3.0 - odometer.committed)
        assert odometer.open_reservations == 1
        with pytest.raises(BudgetRefused, match="umbra budget declare none"):
            budget.odometer("none")

    def test_show_and_history(self, budget):
        budget.declare("other", 1.0, DELTA)
        held = reserve(budget)
        budget.charge(held.id, "train", 5, 1, "a")
        assert [o.name for o in budget.show()] == ["digits", "other"]
        assert [r.kind for r in budget.history("digits")] == [
            "declare",
            "bind",
            "reserve",
            "charge",
        ]
        with pytest.raises(BudgetRefused, match="umbra budget declare none"):
            budget.history("none")

    def test_reading_needs_no_key(self, budget, tmp_path):
        reserve(budget)
        reader = Budget(Ledger.open(tmp_path / "ledger.db"))
        assert reader.show() == budget.show()
        with pytest.raises(InvalidRequest, match="reading only"):
            reserve(reader, "k2")


class TestExport:
    def test_is_written_once(self, budget):
        held = reserve(budget)
        budget.charge(held.id, "train", 5, 1, "a")
        head = budget.record_export(held.id, "a" * 64, "100 images")
        budget.charge(held.id, "train", 1, 1, "b")
        assert budget.record_export(held.id, "a" * 64, "100 images") == head
        row = list(budget.ledger.rows(kind=Kind.EXPORT))
        assert len(row) == 1
        assert row[0].content["used"] == {"train": 5}
        with pytest.raises(InvalidRequest, match="description differ"):
            budget.record_export(held.id, "a" * 64, "other words")

    def test_nothing_unpaid_leaves(self, budget):
        held = reserve(budget)
        with pytest.raises(BudgetRefused, match="charged nothing"):
            budget.record_export(held.id, "a" * 64, "100 images")
        budget.charge(held.id, "train", 5, 1, "a")
        with pytest.raises(BudgetRefused, match="not been paid"):
            budget.record_export(held.id, "a" * 64, "100 images", used={"train": 6})
        with pytest.raises(InvalidRequest, match="no component"):
            budget.record_export(held.id, "a" * 64, "100 images", used={"warm": 1})

    def test_a_void_run_leaves_only_as_void(self, budget):
        held = reserve(budget, void=True)
        budget.charge(held.id, "train", 5, 1, "a")
        with pytest.raises(BudgetRefused, match="seeded"):
            budget.record_export(held.id, "a" * 64, "100 images")
        budget.record_export(held.id, "a" * 64, "100 images", void_allowed=True)

    @pytest.mark.parametrize(
        ("sha", "words"), [("x", "ok"), ("a" * 64, "/home/me"), ("a" * 64, ""), (None, "ok")]
    )
    def test_bad_requests(self, budget, sha, words):
        with pytest.raises(InvalidRequest):
            budget.record_export(reserve(budget).id, sha, words)
