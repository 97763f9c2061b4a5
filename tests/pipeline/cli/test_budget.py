import pytest

from privacy.errors import BudgetRefused


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
    }
    assert (result.code, result.json, result.err) == (0, [expected], "")
    assert umbra("budget", "show", "--json").json == [expected]
    shown = umbra("budget", "show")
    assert shown.code == 0
    assert "digits" in shown.out and "10.0" in shown.out


def test_showing_creates_nothing(umbra, tmp_path):
    result = umbra("budget", "show")
    assert result.code == 0
    assert "umbra budget declare NAME" in result.out
    assert umbra("budget", "show", "--json").json == []
    assert not (tmp_path / "home").exists()


def test_a_lost_ledger_is_not_an_empty_one(umbra, house):
    for path in house.home.path.glob("ledger.db*"):
        path.unlink()
    result = umbra("budget", "show")
    assert result.code == 1
    assert "There is no ledger" in result.err


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
        *("declare", "partition", "order", "reserve", "attempt", "charge", "settle"),
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
