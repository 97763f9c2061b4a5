"""The budget manager is killed while it is charged: every answer is in the ledger, and once."""

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.cluster.budget_actor import ActorMeter, begin_attempt, budget_manager
from privacy.budget import Component
from privacy.budget.identity import content_of
from privacy.ledger import Head, Kind
from privacy.mechanisms import Gaussian
from privacy.records import LabelledRecords

COMPONENT, STEPS = "dp-sgd", 10**6
KILLS = 20

pytestmark = pytest.mark.slow


@pytest.fixture
def reserve(house):
    """Reserve more steps than a test can charge."""
    content = content_of(LabelledRecords(np.zeros((4, 2, 2, 1), np.uint8), np.arange(4)), house.key)

    def ask(run_id):
        return house.budget.reserve(
            run_id, "blots", content, "one image", records_per_unit=1,
            plan=[Component(COMPONENT, Gaussian(1e5, STEPS))],
            void=False, idempotency_key=run_id,
        ).id  # fmt: skip

    return ask


def test_a_manager_killed_at_random_instants_charges_every_call_once(
    embedded, house, reserve, tmp_path
):
    """Meters on a worker and in the driver see nothing of it; nor does who begins attempts."""
    ray = pytest.importorskip("ray")
    seed = random.SystemRandom().getrandbits(32)
    dice, stop = random.Random(seed), tmp_path / "stop"
    manager, ledger = budget_manager(house.access), house.budget.ledger
    charged, begun = reserve("charged"), reserve("begun")
    attempt = begin_attempt(manager, charged)

    def charge(steps):
        meter, heads = ActorMeter(manager, charged, attempt), []
        while not stop.exists():
            heads.append(meter.charge(COMPONENT, steps))
        return heads

    def begin():
        numbers = []
        while not stop.exists():
            numbers.append(begin_attempt(manager, begun))
        return numbers

    def kill():
        pid = ray.get(manager.__ray_call__.remote(lambda _: os.getpid()))
        time.sleep(dice.uniform(0, 0.2))
        way = dice.choice(["Ray", "system", "after a commit"])
        if way == "Ray":
            ray.kill(manager, no_restart=False)
            return
        if way == "after a commit":
            # Where it has most to lose: what was charged, and not answered yet.
            before = ledger.head()
            while ledger.head() == before:
                time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)

    from_worker = ray.remote(charge).options(num_cpus=0).remote(1)
    with ThreadPoolExecutor(2) as pool:
        from_driver, numbers = pool.submit(charge, 2), pool.submit(begin)
        try:
            for _ in range(KILLS):
                kill()
        finally:
            stop.touch()
    returned = [*ray.get(from_worker), *from_driver.result()]
    rows = list(ledger.rows(kind=Kind.CHARGE, reservation=charged))
    assert sorted(str(row.head) for row in rows) == sorted(returned), f"seed {seed}"
    steps = [row.content["steps"] for row in rows]
    assert {1, 2} == set(steps) and len(steps) > KILLS
    assert ActorMeter(manager, charged, attempt).remaining(COMPONENT) == STEPS - sum(steps)
    rows = list(ledger.rows(kind=Kind.ATTEMPT, reservation=begun))
    in_order = list(range(1, len(rows) + 1))
    assert [row.content["attempt"] for row in rows] == numbers.result() == in_order, f"seed {seed}"
    assert ledger.verify(map(Head.parse, returned)) == []
