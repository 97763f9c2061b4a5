"""Many processes at once, and processes that die."""

import os
import random
import signal
import time

import pytest

from privacy.accounting import accountant
from privacy.budget import Budget, Component, StepsExhausted
from privacy.errors import BudgetRefused
from privacy.ledger import Kind, Ledger
from privacy.mechanism import Gaussian

PLAN = [Component("train", Gaussian(8.0, 4))]
EPSILON, DELTA = 3.0, 1e-5


def reserve(budget, key, plan=PLAN):
    return budget.reserve(
        f"run-{key}", "digits", "print-1", 1500, "one image", records_per_unit=1,
        plan=plan, void=False, idempotency_key=str(key),
    )  # fmt: skip


def open_again(ledger, key):
    """What another process does: it has the path or the URL, and nothing else."""
    url = str(ledger._path) if ledger._path else ledger._engine.url
    return Ledger.open(url if isinstance(url, str) else url.render_as_string(False), key)


def how_many_fit():
    rdp, n = accountant("rdp"), 1
    while rdp.epsilon([Gaussian(8.0, 4 * (n + 1))], DELTA) <= EPSILON:
        n += 1
    return n


def test_racing_reservations_grant_what_fits_and_no_more(any_ledger, key, in_processes):
    budget = Budget(any_ledger)
    budget.declare("digits", EPSILON, DELTA)
    fit = how_many_fit()
    assert 2 <= fit <= 10

    def work(i):
        try:
            reserve(Budget(open_again(any_ledger, key)), i)
        except BudgetRefused:
            return 3
        return 0

    codes = in_processes(12, work)
    assert sorted(codes) == [0] * fit + [3] * (12 - fit)
    assert any_ledger.verify() == []
    granted = list(any_ledger.rows(kind=Kind.RESERVE))
    assert len(granted) == fit
    budget.settle(granted[0].reservation)
    reserve(budget, "once-more")
    with pytest.raises(BudgetRefused):
        reserve(budget, "too-much")


def test_racing_charges_never_exceed_the_reservation(any_ledger, key, in_processes):
    budget = Budget(any_ledger)
    budget.declare("digits", EPSILON, DELTA)
    reservation = reserve(budget, "r", [Component("train", Gaussian(40.0, 25))])

    def work(i):
        own = Budget(open_again(any_ledger, key))
        got = 0
        try:
            for j in range(10):
                own.charge(reservation.id, "train", 1, 1, f"{i}-{j}")
                got += 1
        except StepsExhausted:
            pass
        return got

    assert sum(in_processes(6, work)) == 25
    assert budget.charged_steps(reservation.id) == {"train": 25}
    assert any_ledger.verify() == []


def test_one_key_from_many_processes_charges_once(any_ledger, key, in_processes):
    budget = Budget(any_ledger)
    budget.declare("digits", EPSILON, DELTA)
    reservation = reserve(budget, "r")

    def work(_):
        own = Budget(open_again(any_ledger, key))
        reserve(own, "r")
        return own.charge(reservation.id, "train", 2, 1, "same").charged

    assert in_processes(5, work) == [2] * 5
    assert len(list(any_ledger.rows(kind=Kind.CHARGE))) == 1
    assert len(list(any_ledger.rows(kind=Kind.RESERVE))) == 1


def test_a_killed_process_leaves_a_ledger_that_verifies(any_ledger, key):
    budget = Budget(any_ledger)
    budget.declare("digits", EPSILON, DELTA)
    reservation = reserve(budget, "r", [Component("train", Gaussian(1000.0, 100_000))])
    chance = random.Random(0)
    for attempt in range(1, 9):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                own = Budget(open_again(any_ledger, key))
                while True:
                    receipt = own.charge(reservation.id, "train", 3, attempt, os.urandom(8).hex())
                    os.write(write, receipt.charged.to_bytes(8, "little"))
            finally:
                os._exit(1)
        os.close(write)
        with os.fdopen(read, "rb") as acknowledged:
            told = acknowledged.read(8)  # it has begun to charge
            time.sleep(chance.uniform(0, 0.06))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            told += acknowledged.read()
        last = int.from_bytes(told[len(told) // 8 * 8 - 8 :][:8], "little")
        charged = budget.charged_steps(reservation.id)["train"]
        assert charged in (last, last + 3)  # what was acknowledged is there, at most one more
        assert any_ledger.verify() == []
        assert budget.next_attempt(reservation.id) == attempt + 1
    assert budget.settle(reservation.id).charged["train"] == charged
