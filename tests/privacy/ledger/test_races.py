"""Many processes at once, and processes that die."""

import os
import random
import signal
import time

import pytest

from privacy.accounting import accountant
from privacy.budget import Budget, Component
from privacy.errors import BudgetRefused
from privacy.ledger import Kind
from privacy.ledger.records import StepsExhausted
from privacy.mechanisms import Gaussian

EPSILON, DELTA = 3.0, 1e-5
PROCESSES = 64
SIGMA = 8.0


def plan(steps):
    return [Component("train", Gaussian(SIGMA, steps))]


def fits(steps):
    """Whether so many steps in all stay within the budget: Gaussians of one σ add their steps."""
    return accountant("rdp").epsilon([Gaussian(SIGMA, steps)], DELTA) <= EPSILON


@pytest.fixture
def budget(any_ledger):
    assert fits(1)  # imports the accountant here, before anything is forked
    budget = Budget(any_ledger)
    budget.declare("digits", EPSILON, DELTA)
    return budget


@pytest.fixture
def race(any_ledger, again, ask, in_processes):
    """Let processes ask for so many steps each, all at once; returns who was granted them."""

    def run(name, steps):
        def work(i):
            own = again(any_ledger)
            try:
                ask(Budget(own), f"{name}-{i}", plan(steps[i]))
            except BudgetRefused:
                return 3
            return 0

        codes = in_processes(len(steps), work)
        assert set(codes) <= {0, 3}
        return [code == 0 for code in codes]

    return run


def reserved_steps(ledger):
    """Steps of all reservations at the moment after each row, settled ones by what they charged."""
    held, most = {}, 0
    for row in ledger.rows():
        if row.kind == Kind.RESERVE:
            (part,) = row.content["plan"]
            held[row.reservation] = part["mechanism"]["steps"]
        elif row.kind == Kind.SETTLE:
            held[row.reservation] = row.content["charged"]["train"]
        most = max(most, sum(held.values()))
    return sum(held.values()), most


@pytest.mark.slow
def test_racing_reservations_grant_what_fits_and_no_more(budget, any_ledger, race):
    whole = next(n for n in range(1, 1000) if not fits(4 * n)) - 1
    assert 2 <= whole < PROCESSES // 2
    for turn in range(2):
        granted = race(f"turn-{turn}", [4] * PROCESSES)
        assert sum(granted) == whole
        # Once the others have settled, all of them fit again: nothing they gave back is lost.
        for row in list(any_ledger.rows(kind=Kind.RESERVE)):
            budget.settle(row.reservation)
    assert reserved_steps(any_ledger) == (0, 4 * whole)
    assert any_ledger.verify() == []


@pytest.mark.slow
def test_of_unequal_racing_requests_only_those_that_do_not_fit_are_refused(
    budget, any_ledger, race, ask
):
    steps = [random.Random(i).randrange(1, 9) for i in range(PROCESSES)]
    granted = race("race", steps)
    held, _ = reserved_steps(any_ledger)
    assert held == sum(n for n, got in zip(steps, granted, strict=True) if got)
    assert fits(held)
    refused = [n for n, got in zip(steps, granted, strict=True) if not got]
    assert refused
    assert not any(fits(held + n) for n in refused)  # nothing was settled, so nothing got freer
    for row in list(any_ledger.rows(kind=Kind.RESERVE))[::2]:
        attempt = budget.begin_attempt(row.reservation, "start")
        budget.charge(row.reservation, "train", 1, attempt, "one")
        budget.settle(row.reservation)
    for i, n in enumerate(refused):
        held, _ = reserved_steps(any_ledger)
        if fits(held + n):
            ask(budget, f"late-{i}", plan(n))
        else:
            with pytest.raises(BudgetRefused):
                ask(budget, f"late-{i}", plan(n))
    assert fits(reserved_steps(any_ledger)[1])
    assert any_ledger.verify() == []


@pytest.mark.slow
def test_all_who_wait_for_others_to_settle_are_served(budget, any_ledger, again, ask, in_processes):
    def work(i):
        own, chance = Budget(again(any_ledger)), random.Random(i)
        while True:
            try:
                reservation = ask(own, f"wait-{i}", plan(8))
            except BudgetRefused:
                time.sleep(chance.uniform(0.01, 0.1))
                continue
            own.settle(reservation.id)
            return 0

    assert in_processes(PROCESSES // 4, work) == [0] * (PROCESSES // 4)
    now, most = reserved_steps(any_ledger)
    assert now == 0
    assert fits(most)
    assert any_ledger.verify() == []


def test_racing_charges_never_exceed_the_reservation(budget, any_ledger, again, ask, in_processes):
    reservation = ask(budget, "r", [Component("train", Gaussian(40.0, 25))])
    attempt = budget.begin_attempt(reservation.id, "start")

    def work(i):
        own, got = Budget(again(any_ledger)), 0
        try:
            for j in range(10):
                own.charge(reservation.id, "train", 1, attempt, f"{i}-{j}")
                got += 1
        except StepsExhausted:
            pass
        return got

    assert sum(in_processes(6, work)) == 25
    assert budget.charged_steps(reservation.id) == {"train": 25}
    assert any_ledger.verify() == []


def test_one_key_from_many_processes_charges_once(budget, any_ledger, again, ask, in_processes):
    reservation = ask(budget, "r", plan(4))
    attempt = budget.begin_attempt(reservation.id, "start")

    def work(_):
        own = Budget(again(any_ledger))
        ask(own, "r", plan(4))
        return own.charge(reservation.id, "train", 2, attempt, "same").charged

    assert in_processes(PROCESSES // 4, work) == [2] * (PROCESSES // 4)
    assert len(list(any_ledger.rows(kind=Kind.CHARGE))) == 1
    assert len(list(any_ledger.rows(kind=Kind.RESERVE))) == 1


def test_a_killed_process_leaves_a_ledger_that_verifies(budget, any_ledger, again, ask):
    reservation = ask(budget, "r", [Component("train", Gaussian(1000.0, 100_000))])
    chance = random.Random(0)
    for start in range(1, 9):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                own = Budget(again(any_ledger))
                attempt = own.begin_attempt(reservation.id, f"start-{start}")
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
    assert budget.settle(reservation.id).charged["train"] == charged
