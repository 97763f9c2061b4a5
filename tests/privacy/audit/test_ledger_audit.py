import math
from dataclasses import replace

import pytest

from privacy.audit import audit_ledger
from privacy.audit.recompute import opacus_epsilon, unit_guarantee
from privacy.audit.replay import Replay
from privacy.budget import Budget, Component
from privacy.errors import InvalidRequest
from privacy.ledger import Kind, Ledger
from privacy.ledger.canonical import canonical
from privacy.mechanism import Gaussian, SubsampledGaussian

KEY = bytes(range(32))


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger.open(tmp_path / "ledger.db", KEY)
    yield opened
    opened.close()


@pytest.fixture
def budget(ledger):
    budget = Budget(ledger)
    budget.declare("digits", 10.0, 1e-4)
    return budget


def reserve(budget, key="k1", **changes):
    asked = {
        "run_id": f"run-{key}",
        "dataset": "digits",
        "fingerprint": "print-1",
        "records": 1500,
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
    budget.charge(held.id, "warm", 1, 1, "w")
    budget.charge(held.id, "train", 200, 1, "a")
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
    # dp-accounting bounds RDP between whole orders a little loosely; Opacus has it exactly.
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
        reserve(budget, f"e{i}", dataset=f"exact-{i}", fingerprint=f"f{i}", plan=parts)
    assert audit_ledger(ledger).findings == ()


def test_truncation_shows(ledger, run):
    head = replace(ledger.head(), seq=ledger.head().seq + 1)
    audit = audit_ledger(ledger, [head])
    assert not audit.ok
    assert "cut off" in str(audit.findings[0])


def test_only_one_run(ledger, budget, run):
    budget.declare("other", 1.0, 1e-5)
    two = reserve(
        budget, "k2", dataset="other", fingerprint="f2", plan=[Component("t", Gaussian(20.0))]
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
    budget.charge(held.id, "warm", 1, 1, "w")
    budget.record_export(held.id, "ab" * 32, "100 images", void_allowed=True)
    audit = audit_ledger(ledger)
    assert audit.ok
    assert any("run-k1 was seeded" in note for note in audit.notes)
    assert any("exported as void" in note for note in audit.notes)


def test_a_unit_of_many_records(ledger, budget):
    held = reserve(budget, plan=[Component("t", Gaussian(30.0))], records_per_unit=3)
    budget.charge(held.id, "t", 1, 1, "w")
    audit = audit_ledger(ledger)
    (digits,) = audit.datasets
    epsilon = digits.spent.rdp
    assert digits.unit_epsilon == pytest.approx(3 * epsilon)
    assert digits.unit_delta == pytest.approx(3 * math.exp(2 * epsilon) * 1e-4)
    assert any("up to 3 records" in note for note in audit.notes)


@pytest.mark.parametrize(
    ("k", "expected"), [(1, (2.0, 1e-6)), (2, (4.0, 2 * math.exp(2) * 1e-6)), (900, (1800.0, 1.0))]
)
def test_group_privacy(k, expected):
    assert unit_guarantee(2.0, 1e-6, k) == pytest.approx(expected)


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
    texts = [f.problem for f in found(ledger)]
    assert any("after the settlement" in text for text in texts)
    assert any("settled before" in text for text in texts)


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
    forge(ledger, Kind.BIND, {"fingerprint": "print-1", "records": 1500}, "copy")
    assert any("under another name" in f.problem for f in found(ledger))


def test_a_grant_beyond_the_budget(ledger, run):
    """The admitting code lets too much through: the audit's own ε says so."""
    body = next(ledger.rows(kind=Kind.RESERVE)).content
    forge(ledger, Kind.RESERVE, body, "digits", "r-forged")
    audit = audit_ledger(ledger)
    assert not audit.ok
    assert "more was granted" in str(audit.findings[-1])
    assert audit.datasets[0].spent.rdp < 10 < audit.datasets[0].committed.rdp


def test_a_budget_that_admits_everything_is_caught(ledger, budget, monkeypatch):
    monkeypatch.setattr("privacy.accounting.filter.RDPFilter.admits", lambda *_: True)
    reserve(budget, plan=[Component("train", Gaussian(0.3))])
    assert any("more was granted" in str(f) for f in audit_ledger(ledger).findings)


@pytest.mark.parametrize("body", ["", "[]", "{", '{"a": 1}', "null"])
def test_nonsense_never_stops_the_replay(ledger, budget, run, body):
    replay = Replay()
    for row in ledger.rows():
        replay.feed(replace(row, body=body))
    assert len(replay.findings) >= ledger.head().seq - 1
