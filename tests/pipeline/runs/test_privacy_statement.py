import pytest

from pipeline.runs.ledger_access import charged_mechanisms, privacy_statement
from privacy.audit.opacus import opacus_epsilon


def test_it_counts_what_was_charged_not_what_was_planned(house, blots_spec):
    run = house.reserve(blots_spec())
    budget, reserved = house.budget, run.state().reservation_id
    nothing = privacy_statement(budget, reserved)
    assert nothing["epsilon"] == {} and nothing["mechanisms"] == []
    house.charge(run, "dp-sgd", 3)
    said = privacy_statement(budget, reserved)
    (mechanism,) = charged_mechanisms(budget, budget.reservation(reserved)).values()
    assert mechanism.steps == 3
    assert said["mechanisms"] == [{"component": "dp-sgd", **mechanism.to_record()}]
    assert said["epsilon"]["rdp"] == pytest.approx(opacus_epsilon([mechanism], 1e-3), rel=0.02)
    assert said["epsilon"]["pld"] < said["epsilon"]["rdp"] < 8


def test_it_names_the_rows_it_rests_on(house, blots_spec):
    run = house.reserve(blots_spec())
    budget, reserved = house.budget, run.state().reservation_id
    house.charge(run, "dp-sgd", 3)
    said = privacy_statement(budget, reserved)
    assert said["head_hash"] == str(budget.ledger.head())
    assert said["ledger_id"] == budget.ledger.ledger_id
    assert said["reservation"] == reserved
    assert said["run"] == run.run_id
    assert said["dataset"] == "blots"
    assert said["delta"] == 1e-3
    assert said["records"] == 40
    assert said["unit"] == "one image"
    assert said["neighbouring_relation"] == "add/remove with zero-out"
    assert said["void"] is False


def test_a_unit_of_several_records_is_not_promised_what_one_record_is(house, blots_spec):
    unit = "  delta: 1e-3\n  unit: patient\n  records_per_unit: 2"
    run = house.reserve(blots_spec(("  delta: 1e-3", unit)))
    budget, reserved = house.budget, run.state().reservation_id
    house.charge(run, "dp-sgd", 1)
    said = privacy_statement(budget, reserved)
    assert said["records_per_unit"] == 2
    assert said["unit"] == "one record (one patient has up to 2)"
    replaced, owned = said["guarantees"]
    assert (replaced["relation"], replaced["records"]) == ("replace one record", 1)
    assert (owned["relation"], owned["records"]) == ("add or remove up to 2 records", 2)
    for each in (replaced, owned):
        assert each["delta"] == said["delta"] and each["method"]
        assert said["epsilon"]["pld"] < each["epsilon"]


def test_a_void_run_promises_nothing_beside(house, blots_spec):
    run = house.reserve(blots_spec(("  delta: 1e-3", "  delta: 1e-3\n  seed: 3")))
    house.charge(run, "dp-sgd", 1)
    assert privacy_statement(house.budget, run.state().reservation_id)["guarantees"] == []
