from dataclasses import replace

import pytest

from pipeline.cluster.budget_actor import (
    ActorMeter,
    BudgetManager,
    _where,
    begin_attempt,
    budget_manager,
)
from pipeline.runs.ledger_access import LedgerAccess
from privacy.errors import LedgerUnavailable
from privacy.ledger.records import StepsExhausted

COMPONENT = "dp-sgd"
STEPS = 4

pytestmark = pytest.mark.slow


@pytest.fixture
def reserved(house, blots_spec):
    return house.reserve(blots_spec()).state().reservation_id


@pytest.fixture
def manager(embedded, house):
    return budget_manager(house.access)


def test_a_meter_charges_the_ledger_through_the_manager(house, reserved, manager):
    meter = ActorMeter(manager, reserved, begin_attempt(manager, reserved))
    head = meter.charge(COMPONENT, 3)
    assert head == str(house.budget.ledger.head())
    assert house.budget.charged_steps(reserved) == {COMPONENT: 3}
    assert meter.remaining(COMPONENT) == STEPS - 3
    assert begin_attempt(manager, reserved) == 2


def test_a_refusal_arrives_as_it_was_raised(reserved, manager):
    with pytest.raises(StepsExhausted) as refused:
        attempt = begin_attempt(manager, reserved)
        ActorMeter(manager, reserved, attempt).charge(COMPONENT, STEPS + 1)
    assert refused.value.exit_code == 3


def test_one_manager_serves_a_ledger(manager, house):
    again = budget_manager(house.access)
    assert again._actor_id == manager._actor_id


def test_the_manager_of_a_file_runs_on_the_machine_that_has_it(embedded, house):
    here = pytest.importorskip("ray").get_runtime_context().get_node_id()
    where = _where(house.access)
    assert (where.node_id, where.soft) == (here, False)
    assert _where(replace(house.access, url="postgresql://db/umbra")) is None


def test_a_missing_ledger_is_reported_as_such(embedded, tmp_path, house):
    lost = budget_manager(replace(house.access, url=f"sqlite:///{tmp_path / 'lost.db'}"))
    with pytest.raises(LedgerUnavailable):
        begin_attempt(lost, "r-1")
    assert not (tmp_path / "lost.db").exists()


def test_secrets_do_not_show_in_the_manager():
    access = LedgerAccess("postgresql://me:swordfish@db/umbra", b"k" * 32, "me", b"s" * 32)
    shown = repr(access) + repr(BudgetManager(access)) + access.digest()
    assert not any(secret in shown for secret in ("kkkk", "ssss", "swordfish"))


def test_a_manager_of_another_access_is_another_manager(house):
    access = house.access
    others = [
        replace(access, author="somebody else"),
        replace(access, signing_key=b"s" * 32),
        replace(access, url="sqlite:///other.db"),
    ]
    assert len({each.digest() for each in (access, *others)}) == 4


def test_only_a_ledger_on_this_machine_takes_the_witness_along(house):
    assert house.access.anywhere().witness == house.home.witness_path
    assert replace(house.access, url="postgresql://db/umbra").anywhere().witness is None
