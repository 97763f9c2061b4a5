import gc
from dataclasses import replace

import pytest

from privacy.budget import Budget
from privacy.errors import BudgetRefused
from privacy.ledger import Ledger
from privacy.ledger.chain import row_hash
from privacy.ledger.records import Facts


def test_declare_and_show(umbra):
    result = umbra("budget", "declare", "digits", "--epsilon", "10", "--delta", "1e-4", "--json")
    expected = {
        "name": "digits",
        "epsilon": 10.0,
        "delta": 1e-4,
        "spent": 0.0,
        "committed": 0.0,
        "reserved": 0.0,
        "left": 10.0,
        "open_reservations": 0,
        "partitions": {},
        "orders": {},
        "used": 0.0,
        "closed": False,
        "facts": {
            "unit": "image",
            "records_per_unit": 1,
            "public": False,
            "public_holdout": False,
        },
    }
    assert (result.code, result.json, result.err) == (0, [expected], "")
    assert umbra("budget", "show", "--json").json == [expected]
    shown = umbra("budget", "show")
    assert shown.code == 0
    assert "digits" in shown.out and "10.0" in shown.out


def test_power_is_shown_where_it_is_asked_for(umbra, finished):
    (plain,) = umbra("budget", "show", "--json").json
    (meter,) = umbra("budget", "show", "--power", "--json").json
    (curve,) = meter.pop("attack")
    assert meter == plain
    assert 0.01 < curve["power"]["0.01"] <= 1 and curve["records"] == 1
    assert curve["meaning"] in umbra("budget", "show", "--power").out
    assert "suspects" not in umbra("budget", "show").out


def test_showing_creates_nothing(umbra, tmp_path):
    result = umbra("budget", "show")
    assert result.code == 0
    assert "umbra budget declare NAME" in result.out
    assert umbra("budget", "show", "--json").json == []
    assert not (tmp_path / "home").exists()


def test_a_lost_ledger_is_not_an_empty_one(umbra, house, write_spec):
    for path in house.home.path.glob("ledger.db*"):
        path.unlink()
    for command in (("budget", "show"), ("budget", "history", "blots"), ("plan", write_spec())):
        result = umbra(*command)
        assert result.code == 4
        assert "is gone or was emptied" in result.err and "up to row 3" in result.err
        assert "8.5" not in result.out


def test_what_runs_reserve_and_spend(umbra, house, blots_spec):
    run = house.reserve(blots_spec())
    (meter,) = umbra("budget", "show", "--json").json
    assert meter["spent"] == 0 and meter["open_reservations"] == 1
    assert 7.9 < meter["reserved"] <= 8
    house.finish(run)
    (meter,) = umbra("budget", "show", "--json").json
    assert 7.9 < meter["spent"] <= 8 and meter["reserved"] == 0


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [
        ("nan", "1e-5"),
        ("inf", "1e-5"),
        ("-1", "1e-5"),
        ("0", "1e-5"),
        ("1e-320", "1e-5"),
        ("1", "nan"),
        ("1", "-1e-5"),
        ("1", "0"),
        ("1", "1"),
    ],
)
def test_invalid_numbers(umbra, house, epsilon, delta):
    before = house.kinds()
    result = umbra("budget", "declare", "new", "--epsilon", epsilon, "--delta", delta)
    assert (result.code, result.out) == (2, "")
    assert ("epsilon" if delta == "1e-5" else "delta") in result.err
    assert house.kinds() == before


def test_a_name_that_is_none(umbra, house):
    result = umbra("budget", "declare", "a b", "--epsilon", "1", "--delta", "1e-5")
    assert result.code == 2
    assert "name" in result.err


def test_a_budget_does_not_change(umbra, house):
    result = umbra("budget", "declare", "blots", "--epsilon", "99", "--delta", "1e-3")
    assert result.code == 3
    assert "was declared with ε=8.5" in result.err
    same = umbra("budget", "declare", "blots", "--epsilon", "8.5", "--delta", "1e-3")
    assert same.code == 0
    assert house.kinds().count("declare") == 1


def test_history_shows_who_did_what_and_when(umbra, finished):
    house, run = finished
    rows = umbra("budget", "history", "blots", "--json").json
    assert [row["kind"] for row in rows] == [
        *("declare", "facts", "holdout", "partition", "order", "reserve"),
        *("attempt", "charge", "settle"),
    ]
    assert {row["author"] for row in rows} == {house.home.author}
    shown = umbra("budget", "history", "blots").out
    assert run.run_id in shown and house.home.author in shown and "charged 4 steps" in shown
    assert umbra("budget", "history", "nobody").code == 3


def test_a_closed_budget_admits_nothing_more(umbra, house, blots_spec):
    result = umbra("budget", "close", "blots", "--json")
    assert result.code == 0 and result.json[0]["closed"] is True
    assert "closed" in umbra("budget", "show").out
    with pytest.raises(BudgetRefused, match="closed"):
        house.reserve(blots_spec())


def test_an_officer_accepts_an_overlap(umbra, house):
    house.budget.declare("more", 1.0, 1e-5)
    result = umbra("budget", "accept-overlap", "more", "blots", "--json")
    assert result.code == 0 and [each["name"] for each in result.json] == ["more", "blots"]
    assert umbra("budget", "accept-overlap", "more", "nobody").code == 3
    assert umbra("budget", "accept-overlap", "more", "more").code == 2


@pytest.mark.parametrize("command", ["show", "history", "close", "declare", "plan"])
def test_an_emptied_or_replaced_ledger_is_told_by_its_witness(
    umbra, house, write_spec, command, tmp_path
):
    path = house.home.path / "ledger.db"
    options = {"show": [], "history": ["blots"], "close": ["blots"]}
    options["declare"] = ["blots", "--epsilon", "8.5", "--delta", "1e-3"]
    asked = ["plan", write_spec()] if command == "plan" else ["budget", command, *options[command]]
    gc.collect()  # closes the connections of this process, which would write to the file
    for beside in house.home.path.glob("ledger.db-*"):
        beside.unlink()
    path.write_bytes(b"")
    emptied = umbra(*asked)
    assert (emptied.code, emptied.out) == (4, "")
    assert "up to row 3" in emptied.err
    path.unlink()
    Budget(Ledger.open(path, house.key)).declare("blots", 8.5, 1e-3, Facts(public_holdout=True))
    replaced = umbra(*asked)
    assert (replaced.code, replaced.out) == (4, "")
    assert "every budget would be whole again" in replaced.err


@pytest.mark.parametrize("command", ["show", "history", "close", "plan"])
def test_figures_from_rows_that_fail_the_audit_are_not_printed(
    umbra, finished, tamper, write_spec, command
):
    """The rows are rehashed, so that only the rules of their kinds find it."""
    house, _ = finished
    rows = list(house.budget.ledger.rows())
    (charge,) = [row for row in rows if row.kind == "charge"]
    lie = replace(charge, body=charge.body.replace('"steps":4', '"steps":1'))
    changed = [lie, *rows[charge.seq :]]
    for i, row in enumerate(changed):
        before = changed[i - 1].hash if i else row.prev_hash
        changed[i] = replace(row, prev_hash=before)
        changed[i] = replace(changed[i], hash=row_hash(changed[i]))
        fields = f"body = '{changed[i].body}', prev_hash = '{before}', hash = '{changed[i].hash}'"
        tamper(house, f"UPDATE umbra_ledger SET {fields} WHERE seq = {row.seq}")
    house.home.witness_path.unlink()
    asked = {"show": [], "history": ["blots"], "close": ["blots"]}.get(command)
    result = umbra("plan", write_spec()) if asked is None else umbra("budget", command, *asked)
    assert (result.code, result.out) == (4, "")
    assert "no figure of it holds" in result.err
