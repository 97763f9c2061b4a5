import hashlib
import math
from dataclasses import replace

import pytest

from privacy.accounting.guarantee import group, replace_one
from privacy.audit import audit_ledger
from privacy.audit.ledger import epsilons
from privacy.audit.opacus import opacus_epsilon
from privacy.audit.replay import Replay, connected
from privacy.budget import Budget, Component
from privacy.budget.identity import Content
from privacy.errors import InvalidRequest
from privacy.ledger import Kind, Ledger
from privacy.ledger.rows import canonical
from privacy.mechanisms import Gaussian, SubsampledGaussian

KEY = bytes(range(32))


@pytest.fixture
def budget(ledger):
    budget = Budget(ledger)
    budget.declare("digits", 10.0, 1e-4)
    return budget


def content(name="digits", records=1500, shares=0, of="digits"):
    """A content without its images: 20 digests of a name, and those it shares with another."""
    numbers = [(of, i) for i in range(shares)] + [(name, i) for i in range(20 - shares)]
    digests = sorted(hashlib.sha256(repr(n).encode()).hexdigest()[:16] for n in numbers)
    return Content(f"print-{name}", records, tuple(digests))


def partition(name, **changes):
    made = content(name)
    body = {"partition": name, "fingerprint": made.fingerprint, "records": made.records}
    return {**body, "sketch": list(made.sketch), **changes}


def reserve(budget, key="k1", **changes):
    asked = {
        "run_id": f"run-{key}",
        "dataset": "digits",
        "content": content(),
        "unit": "one image",
        "records_per_unit": 1,
        "plan": [
            Component("train", SubsampledGaussian(1 / 6, 2.0, 400)),
            Component("warm", Gaussian(9.0)),
        ],
        "void": False,
        "idempotency_key": key,
    }
    return budget.reserve(**{**asked, **changes})


@pytest.fixture
def run(budget):
    held = reserve(budget)
    budget.begin_attempt(held.id, "first")
    budget.charge(held.id, "warm", 1, 1, "w")
    budget.charge(held.id, "train", 200, 1, "a")
    budget.begin_attempt(held.id, "second")
    budget.charge(held.id, "train", 100, 2, "b")
    budget.record_export(held.id, "ab" * 32, "100 images", used={"train": 250})
    return held


def test_a_sound_ledger(ledger, budget, run):
    audit = audit_ledger(ledger, [ledger.head()])
    assert audit.ok
    assert audit.findings == audit.notes == ()
    assert (audit.rows, audit.head) == (ledger.head().seq, ledger.head())
    (digits,) = audit.datasets
    assert digits.spent.pld <= digits.spent.prv <= digits.spent.rdp
    odometer = budget.odometer("digits")
    # RDP between whole orders is bounded a little loosely by the filter; Opacus has it exactly.
    assert 0.99 * odometer.spent < digits.spent.rdp <= odometer.spent + 1e-4
    assert 0.99 * odometer.committed < digits.committed.rdp <= odometer.committed + 1e-4
    assert digits.spent.rdp < digits.committed.rdp
    (found,) = audit.reservations
    assert found.charged == {"train": 300, "warm": 1}
    assert found.reserved == {"train": 400, "warm": 1}
    assert (found.attempts, found.settled, found.exports) == (2, False, ("ab" * 32,))
    assert canonical(audit.to_record())


def test_the_papers_sigma_by_opacus():
    plan = [SubsampledGaussian(1 / 15, 2.48779296875, 4500)]
    assert opacus_epsilon(plan, 1e-5) == pytest.approx(9.9959, abs=1e-2)


def test_gaussians_by_closed_form():
    """RDP of T Gaussian releases is αT/(2σ²), whatever code computes it."""
    from privacy.accounting.rdp import ORDERS

    by_hand = min(
        a * 50 / 200 + math.log1p(-1 / a) - math.log(1e-5 * a) / (a - 1) for a in map(float, ORDERS)
    )
    assert opacus_epsilon([Gaussian(10.0, 50)], 1e-5) == pytest.approx(by_hand, rel=1e-9)


def test_what_fits_exactly_is_not_called_broken(ledger, budget):
    from privacy.accounting import accountant

    for i, plan in enumerate(
        ([SubsampledGaussian(0.01, 6.0, 2000)], [Gaussian(40.0), SubsampledGaussian(0.5, 60, 90)])
    ):
        exact = accountant("rdp").epsilon(plan, 1e-6)
        budget.declare(f"exact-{i}", exact, 1e-6)
        parts = [Component(f"c{j}", mechanism) for j, mechanism in enumerate(plan)]
        reserve(budget, f"e{i}", dataset=f"exact-{i}", content=content(f"f{i}"), plan=parts)
    assert audit_ledger(ledger).findings == ()


def test_truncation_shows(ledger, run):
    head = replace(ledger.head(), seq=ledger.head().seq + 1)
    audit = audit_ledger(ledger, [head])
    assert not audit.ok
    assert "cut off" in str(audit.findings[0])


def test_only_one_run(ledger, budget, run):
    budget.declare("other", 1.0, 1e-5)
    two = reserve(
        budget, "k2", dataset="other", content=content("f2"), plan=[Component("t", Gaussian(20.0))]
    )
    audit = audit_ledger(ledger, run_id="run-k2")
    assert [r.id for r in audit.reservations] == [two.id]
    assert [d.name for d in audit.datasets] == ["other"]
    assert [r.run_id for r in audit_ledger(ledger, reservation_id=run.id).reservations] == [
        "run-k1"
    ]
    with pytest.raises(InvalidRequest, match="no reservation of 'run-x'"):
        audit_ledger(ledger, run_id="run-x")


def test_a_void_run_is_said(ledger, budget):
    held = reserve(budget, void=True)
    budget.begin_attempt(held.id, "first")
    budget.charge(held.id, "warm", 1, 1, "w")
    budget.record_export(held.id, "ab" * 32, "100 images", void_allowed=True)
    audit = audit_ledger(ledger)
    assert audit.ok
    assert any("run-k1 was seeded" in note for note in audit.notes)
    assert any("exported as void" in note for note in audit.notes)


@pytest.mark.parametrize("k", [1, 3])
def test_guarantees_of_other_relations(ledger, budget, k):
    mechanism = Gaussian(30.0)
    held = reserve(budget, plan=[Component("t", mechanism)], records_per_unit=k)
    budget.begin_attempt(held.id, "first")
    assert audit_ledger(ledger).datasets[0].guarantees == ()  # nothing was spent
    budget.charge(held.id, "t", 1, 1, "w")
    audit = audit_ledger(ledger)
    (digits,) = audit.datasets
    expected = (replace_one([mechanism], 1e-4), *([group([mechanism], 1e-4, 3)] if k == 3 else []))
    assert digits.guarantees == expected
    assert all(digits.spent.pld < guarantee.epsilon for guarantee in digits.guarantees)
    (said,) = [note for note in audit.notes if "up to 3 records" in note] if k == 3 else [""]
    assert k == 1 or f"ε={expected[1].epsilon}" in said


def test_a_unit_may_own_records_in_every_part(ledger, budget):
    for i, part in enumerate(["train", "holdout"]):
        plan = [Component("t", Gaussian(20.0 + i))]
        held = reserve(
            budget, part, partition=part, content=content(part), plan=plan, records_per_unit=2
        )
        budget.charge(held.id, "t", 1, budget.begin_attempt(held.id, "a"), "w")
    (digits,) = audit_ledger(ledger).datasets
    assert digits.guarantees == (
        replace_one([Gaussian(20.0)], 1e-4),
        group([Gaussian(20.0), Gaussian(21.0)], 1e-4, 2),
    )


def test_parts_stand_by_themselves(ledger, budget, run):
    held = reserve(budget, "k2", partition="holdout", content=content("holdout", 300))
    budget.charge(held.id, "warm", 1, budget.begin_attempt(held.id, "a"), "w")
    audit = audit_ledger(ledger)
    assert audit.ok
    (digits,) = audit.datasets
    train, holdout = digits.partitions
    assert (train.name, train.records, holdout.name, holdout.records) == (
        "train", 1500, "holdout", 300,
    )  # fmt: skip
    assert holdout.spent == epsilons([Gaussian(9.0)], 1e-4)
    assert digits.spent == train.spent
    assert digits.committed == train.committed == holdout.committed
    assert [r.partition for r in audit.reservations] == ["train", "holdout"]


def test_each_part_is_held_to_the_budget(ledger, budget, run):
    reserve(budget, "k2", partition="holdout", content=content("holdout", 300))
    body = list(ledger.rows(kind=Kind.RESERVE))[-1].content
    forge(ledger, Kind.RESERVE, body, "digits", "r-forged")
    broken = [str(f) for f in audit_ledger(ledger).findings]
    assert len(broken) == 1
    assert "(part 'holdout')" in broken[0]
    assert "more than the declared" in broken[0]


def test_who_reserved(tmp_path, ledger, budget):
    named = Ledger.open(tmp_path / "ledger.db", KEY, author="alice")
    reserve(Budget(named))
    assert [r.author for r in audit_ledger(ledger).reservations] == ["alice"]
    named.close()


def test_the_ledgers_key_is_asked_for(ledger, run, monkeypatch):
    asked = []
    monkeypatch.setattr(Ledger, "verify", lambda _, heads, key: asked.append((heads, key)) or [])
    audit_ledger(ledger, [ledger.head()], public_key="ab" * 32)
    assert asked == [([ledger.head()], "ab" * 32)]


class TestOverlaps:
    def test_accepted(self, ledger, budget, run):
        budget.declare("other", 5.0, 1e-5)
        budget.accept_overlap("other", "digits")
        plan = [Component("t", Gaussian(9.0))]
        held = reserve(budget, "k2", dataset="other", content=content("other", shares=9), plan=plan)
        budget.charge(held.id, "t", 1, budget.begin_attempt(held.id, "a"), "w")
        audit = audit_ledger(ledger)
        assert audit.ok
        (note,) = [note for note in audit.notes if "share records" in note]
        together = sum(d.spent.rdp for d in audit.datasets)
        assert note.startswith("'digits', 'other' share records (accepted in row ")
        assert f"ε={together:.4f}, δ=0.00011" in note
        # An audit of one of the two runs says it as well.
        assert note in audit_ledger(ledger, run_id="run-k2").notes

    def test_of_three_add_up_together(self, ledger, budget, run):
        for name in ("b", "c"):
            budget.declare(name, 5.0, 1e-5)
            budget.accept_overlap(name, "digits")
        (note,) = audit_ledger(ledger).notes
        assert note.startswith("'b', 'c', 'digits' share records")
        assert "δ=0.00012" in note

    def test_a_few_shared_records_are_noted(self, ledger, budget, run):
        digests = [f"{i:016x}" for i in range(100)]
        budget.declare("b", 5.0, 1e-5)
        budget.declare("c", 5.0, 1e-5)
        plan = [Component("t", Gaussian(9.0))]
        reserve(budget, "k2", dataset="b", content=Content("b", 999, tuple(digests)), plan=plan)
        one = sorted([digests[0], *(f"f{i:015x}" for i in range(99))])
        reserve(budget, "k3", dataset="c", content=Content("c", 999, tuple(one)), plan=plan)
        audit = audit_ledger(ledger)
        assert audit.ok
        (note,) = audit.notes
        assert note.startswith("'b', 'c' share records (a few of them")

    def test_groups_hang_together(self):
        pairs = [frozenset(pair) for pair in ("ab", "cd", "ef", "bc", "gh")]
        assert connected(pairs) == [["a", "b", "c", "d"], ["e", "f"], ["g", "h"]]


def forge(ledger, kind, body, dataset="digits", reservation=None):
    """Append a row with a right hash and a wrong meaning: what a bug in the budget would do."""
    with ledger.transaction() as t:
        t.append(kind, body, dataset, reservation)


def found(ledger):
    """The findings of the replay alone: computing every ε takes seconds."""
    replay = Replay()
    for row in ledger.rows():
        replay.feed(row)
    return replay.findings


def charge(**changes):
    body = {"component": "train", "steps": 1, "attempt": 2, "charged": {"train": 301, "warm": 1}}
    return {**body, **changes}


EXPORT = {
    "run": "run-k1", "manifest": "cd" * 32, "description": "x", "void": False,
    "used": {"train": 300},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "body", "problem"),
    [
        (Kind.CHARGE, charge(steps=101, charged={"train": 401, "warm": 1}), "401 steps"),
        (Kind.CHARGE, charge(attempt=1), "older attempt"),
        (Kind.CHARGE, charge(attempt=3), "attempt 3 charged and was never begun"),
        (Kind.CHARGE, charge(attempt=0), "whole number"),
        (Kind.ATTEMPT, {"attempt": 2}, "attempt 2 began where 3 was the next"),
        (Kind.ATTEMPT, {"attempt": 4}, "attempt 4 began where 3 was the next"),
        (Kind.ATTEMPT, {"attempt": "3"}, "whole number"),
        (Kind.CHARGE, charge(charged={"train": 300, "warm": 1}), "totals"),
        (Kind.CHARGE, charge(component="none"), "no component"),
        (Kind.CHARGE, charge(steps=0), "whole number"),
        (Kind.CHARGE, charge(steps=-5, charged={"train": 295, "warm": 1}), "whole number"),
        (Kind.CHARGE, {"steps": 1}, "understood"),
        (Kind.SETTLE, {"charged": {"train": 1, "warm": 1}}, "totals"),
        (Kind.EXPORT, {**EXPORT, "used": {"train": 301}}, "fewer were charged"),
        (Kind.EXPORT, {**EXPORT, "used": {"none": 1}}, "fewer were charged"),
        (Kind.EXPORT, {**EXPORT, "run": "run-9"}, "another run"),
        (Kind.EXPORT, {**EXPORT, "void": True}, "hides"),
        (Kind.DECLARE, {"epsilon": 10.0, "delta": 1e-4}, "second budget"),
        (Kind.BIND, {"fingerprint": "print-2", "records": 1500}, "bound to other content"),
        (Kind.BIND, {"fingerprint": "print-digits", "records": 1500}, "bound twice"),
        (Kind.PARTITION, partition("digits"), "'digits' is the content of the part 'train'"),
        (Kind.PARTITION, partition("x", partition="train"), "bound to other content"),
        (Kind.PARTITION, partition("x", partition=None), "names no part"),
        (Kind.PARTITION, partition("x", records=0), "whole number"),
        (Kind.PARTITION, partition("x", records=19), "more digests than"),
        (Kind.PARTITION, partition("x", sketch=[]), "0 digests"),
        (Kind.PARTITION, partition("x", sketch=["0" * 16] * 2), "sorted digests"),
        (Kind.PARTITION, partition("x", sketch=["g" * 16]), "sorted digests"),
        (Kind.PARTITION, partition("x", sketch=list(content("x", shares=1).sketch)), "share rec"),
        (Kind.OVERLAP, {"other": "digits"}, "overlaps with itself"),
        (Kind.OVERLAP, {"other": "none"}, "never declared"),
        (Kind.OVERLAP, {}, "understood"),
        (Kind.MIGRATE, {"schema": 2}, "older schema"),
        (Kind.SIGNER, {"public_key": "ab"}, "no Ed25519 key"),
        (Kind.GENESIS, {}, "begins only once"),
    ],
)
def test_a_row_that_breaks_a_rule(ledger, run, kind, body, problem):
    forge(ledger, kind, body, reservation=run.id)
    findings = found(ledger)
    assert any(problem in f.problem and f.seq == ledger.head().seq for f in findings), findings


def test_charges_and_settlements_after_a_settlement(ledger, budget, run):
    budget.settle(run.id)
    forge(ledger, Kind.CHARGE, charge(), reservation=run.id)
    forge(ledger, Kind.SETTLE, {"charged": {"train": 301, "warm": 1}}, reservation=run.id)
    forge(ledger, Kind.ATTEMPT, {"attempt": 3}, reservation=run.id)
    texts = [f.problem for f in found(ledger)]
    assert any("charged after the settlement" in text for text in texts)
    assert any("began after the settlement" in text for text in texts)
    assert any("settled before" in text for text in texts)


def test_a_reservation_after_the_end(ledger, budget, run):
    budget.close("digits")
    assert found(ledger) == []
    body = next(ledger.rows(kind=Kind.RESERVE)).content
    forge(ledger, Kind.RESERVE, body, "digits", "r-forged")
    assert ["closed before" in f.problem for f in found(ledger)] == [True]


def test_an_attempt_that_went_on_after_it_was_overtaken(ledger, budget, run):
    """A budget that takes charges of any attempt is caught."""
    budget.begin_attempt(run.id, "third")
    forge(ledger, Kind.CHARGE, charge(), reservation=run.id)
    assert ["older attempt" in f.problem for f in found(ledger)] == [True]


def test_a_budget_that_does_not_ask_for_attempts_is_caught(ledger, budget, monkeypatch):
    monkeypatch.setattr("privacy.budget.admission.require_chargeable", lambda *_: None)
    budget.charge(reserve(budget).id, "warm", 1, 1, "w")
    assert ["never begun" in f.problem for f in found(ledger)] == [True]


class TestSchemaOne:
    """Rows that older versions wrote keep their meaning."""

    @pytest.fixture
    def rows(self, ledger, budget):
        held = reserve(budget)
        for attempt, total in ((1, 5), (1, 9), (3, 12)):
            steps = {1: {5: 5, 9: 4}, 3: {12: 3}}[attempt][total]
            body = charge(steps=steps, attempt=attempt, charged={"train": total, "warm": 0})
            forge(ledger, Kind.CHARGE, body, reservation=held.id)
        rows = [row for row in ledger.rows() if row.kind != Kind.ORDER]
        old = {"fingerprint": content().fingerprint, "records": 1500}
        return [
            replace(row, body=canonical({**row.content, "schema": 1}))
            if row.kind == Kind.GENESIS
            else replace(row, kind="bind", body=canonical(old))
            if row.kind == Kind.PARTITION
            else row
            for row in rows
        ], held.id

    def replayed(self, rows, *more):
        replay = Replay()
        for i, row in enumerate([*rows, *more]):
            replay.feed(replace(row, seq=i + 1))
        return replay

    def row(self, rows, kind, body, reservation=None):
        return replace(rows[-1], kind=kind.value, body=canonical(body), reservation=reservation)

    def test_attempts_began_with_their_charges(self, rows):
        replay = self.replayed(rows[0])
        assert replay.findings == []
        (reservation,) = replay.reservations.values()
        assert (reservation.partition, reservation.attempts) == ("train", 2)
        assert reservation.charged == {"train": 12, "warm": 0}

    def test_goes_on_after_the_migration(self, rows):
        rows, held = rows
        made = content()
        again = {"partition": "train", "fingerprint": made.fingerprint, "records": 1500}
        total = {"train": 13, "warm": 0}
        replay = self.replayed(
            rows,
            self.row(rows, Kind.MIGRATE, {"schema": 2}),
            self.row(rows, Kind.SIGNER, {"public_key": "ab" * 32, "possession": "cd" * 64}),
            self.row(rows, Kind.PARTITION, {**again, "sketch": list(made.sketch)}),
            self.row(rows, Kind.CHARGE, charge(attempt=3, charged=total), held),
            self.row(rows, Kind.ATTEMPT, {"attempt": 4}, held),
        )
        assert replay.findings == []

    def test_a_second_part_waits_for_the_sketch_of_the_first(self, rows):
        rows, _ = rows
        migrated = self.row(rows, Kind.MIGRATE, {"schema": 2})
        replay = self.replayed(rows, migrated, self.row(rows, Kind.PARTITION, partition("holdout")))
        assert ["nothing shows" in f.problem for f in replay.findings] == [True]

    def test_the_new_rules_hold_after_it(self, rows):
        rows, held = rows
        body = charge(attempt=4, charged={"train": 13, "warm": 0})
        migrated = self.row(rows, Kind.MIGRATE, {"schema": 2})
        bound = self.row(rows, Kind.BIND, {"fingerprint": "x", "records": 5})
        replay = self.replayed(
            rows, migrated, self.row(rows, Kind.CHARGE, body, held), replace(bound, dataset="none")
        )
        assert ["never begun" in f.problem for f in replay.findings] == [True, False]


def test_rows_without_a_reservation(ledger, budget):
    forge(ledger, Kind.CHARGE, charge(), reservation="r-none")
    forge(ledger, Kind.EXPORT, EXPORT)
    assert len([f for f in found(ledger) if "does not exist" in f.problem]) == 2


def test_an_export_before_any_charge(ledger, budget):
    held = reserve(budget)
    forge(ledger, Kind.EXPORT, {**EXPORT, "used": {}}, reservation=held.id)
    assert any("before anything" in f.problem for f in found(ledger))


@pytest.mark.parametrize(
    ("change", "dataset", "problem"),
    [
        ({}, "undeclared", "never declared"),
        ({"fingerprint": "print-9"}, "digits", "not what was bound"),
        ({"records": 7}, "digits", "not what was bound"),
        ({"plan": []}, "digits", "empty"),
        ({"plan": [{"name": "a", "mechanism": {"type": "magic"}}]}, "digits", "understood"),
    ],
)
def test_a_forged_reservation(ledger, run, change, dataset, problem):
    body = next(ledger.rows(kind=Kind.RESERVE)).content
    forge(ledger, Kind.RESERVE, {**body, **change}, dataset, "r-forged")
    assert any(problem in f.problem for f in found(ledger))


def test_a_copy_with_its_own_budget(ledger, budget, run):
    budget.declare("copy", 10.0, 1e-4)
    forge(ledger, Kind.PARTITION, {**partition("digits"), "partition": "train"}, "copy")
    assert any("under another name" in f.problem for f in found(ledger))


def test_a_near_copy_with_its_own_budget(ledger, budget, run):
    budget.declare("copy", 10.0, 1e-4)
    body = partition("copy", sketch=list(content("copy", shares=1).sketch))
    forge(ledger, Kind.PARTITION, body, "copy")
    assert any("'copy' shares records with 'digits'" in f.problem for f in found(ledger))


def test_a_grant_beyond_the_budget(ledger, run):
    """The admitting code lets too much through: the audit's own ε says so."""
    body = next(ledger.rows(kind=Kind.RESERVE)).content
    forge(ledger, Kind.RESERVE, body, "digits", "r-forged")
    audit = audit_ledger(ledger)
    assert not audit.ok
    assert "more than the declared" in str(audit.findings[-1])
    assert audit.datasets[0].spent.rdp < 10 < audit.datasets[0].committed.rdp


def test_a_budget_that_admits_everything_is_caught(ledger, budget, monkeypatch):
    monkeypatch.setattr("privacy.accounting.rdp.RDPFilter.share", lambda *_: 0.0)
    reserve(budget, plan=[Component("train", Gaussian(0.3))])
    assert any("more than the declared" in str(f) for f in audit_ledger(ledger).findings)


@pytest.mark.parametrize("body", ["", "[]", "{", '{"a": 1}', "null"])
def test_nonsense_never_stops_the_replay(ledger, budget, run, body):
    replay = Replay()
    for row in ledger.rows():
        replay.feed(replace(row, body=body))
    assert len(replay.findings) >= ledger.head().seq - 1


def test_prv_is_left_out_where_it_would_take_minutes(ledger, budget, run):
    """RDP decides and PLD is there; an audit of a run of another data set has all three."""
    budget.declare("busy", 50.0, 1e-4)
    for i in range(9):
        plan = [Component("t", Gaussian(40.0 + i))]
        held = reserve(budget, f"b{i}", dataset="busy", content=content("busy"), plan=plan)
        budget.charge(held.id, "t", 1, budget.begin_attempt(held.id, "a"), "w")
    digits, busy = audit_ledger(ledger).datasets
    assert digits.spent.prv is busy.spent.prv is None
    assert busy.spent.pld <= busy.spent.rdp
    (alone,) = audit_ledger(ledger, reservation_id=run.id).datasets
    assert alone.spent.prv is not None
    assert (alone.spent.rdp, alone.spent.pld) == (digits.spent.rdp, digits.spent.pld)
