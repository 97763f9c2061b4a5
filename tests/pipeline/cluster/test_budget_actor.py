import pytest

from pipeline.cluster.budget_actor import ActorMeter, BudgetManager, budget_manager
from pipeline.cluster.calls import answer
from privacy.budget import StepsExhausted
from privacy.errors import LedgerUnavailable

COMPONENT = "dp-sgd"
STEPS = 4

pytestmark = pytest.mark.slow


@pytest.fixture
def reserved(house, blots_spec):
    return house.reserve(blots_spec()).state().reservation_id


@pytest.fixture
def manager(embedded, house):
    return budget_manager(house.home.ledger_url, house.key)


def test_a_meter_charges_the_ledger_through_the_manager(house, reserved, manager):
    meter = ActorMeter(manager, reserved, 1)
    head = meter.charge(COMPONENT, 3)
    assert head == str(house.budget.ledger.head())
    assert house.budget.charged_steps(reserved) == {COMPONENT: 3}
    assert meter.remaining(COMPONENT) == STEPS - 3
    assert answer(manager.next_attempt.remote(reserved)) == 2


def test_a_refusal_arrives_as_it_was_raised(reserved, manager):
    with pytest.raises(StepsExhausted) as refused:
        ActorMeter(manager, reserved, 1).charge(COMPONENT, STEPS + 1)
    assert refused.value.exit_code == 3


def test_one_manager_serves_a_ledger(manager, house):
    again = budget_manager(house.home.ledger_url, house.key)
    assert again._actor_id == manager._actor_id


def test_a_ledger_that_is_gone_is_told_as_such(embedded, tmp_path, house):
    lost = budget_manager(f"sqlite:///{tmp_path / 'lost.db'}", house.key)
    with pytest.raises(LedgerUnavailable):
        answer(lost.next_attempt.remote("r-1"))
    assert not (tmp_path / "lost.db").exists()


def test_a_key_does_not_show_in_the_manager():
    manager = BudgetManager("sqlite:///ledger.db", b"k" * 32)
    assert "kkkk" not in repr(manager)
