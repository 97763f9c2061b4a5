"""Runs that are killed anywhere in their lives, 300 times: the ledger covers all that was drawn.

SIGKILL takes a process, not the machine: what it left to the kernel stays. That commits survive a
power cut too is for SQLite's `synchronous=FULL`, and no test here can see it.
"""

import os
import random
import signal
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from privacy.audit.ledger import audit_ledger
from privacy.budget import Budget
from privacy.errors import BudgetRefused, NoLedger
from privacy.ledger import Kind, Ledger
from privacy.ledger.chain import Signer, Witness
from synth.checkpoint import newest
from synth.training import PRIVATE, WARMUP
from tests.synth.killing import NEVER, Instant, Nursery, Start
from tests.synth.run_to_kill import (
    DATASET,
    PHASES,
    QUERY_DRAWS,
    RUNS,
    SEED,
    STEP_DRAWS,
    STEPS,
    Life,
    plan,
)

KILLS = 50  # in each of the ledgers
LEDGERS = 6
PUBLIC_KEY = Signer.from_seed(SEED).public_key


@pytest.mark.slow
@pytest.mark.parametrize("number", range(LEDGERS))
def test_killed_anywhere_a_run_goes_on_and_the_ledger_covers_it(number, nursery, calm, tmp_path):
    seed = int(os.environ.get("UMBRA_KILL_SEED") or random.SystemRandom().getrandbits(32))
    campaign = Campaign(nursery, calm, tmp_path, random.Random(seed), at_once=1 + number % 2)
    try:
        campaign.run()
    except BaseException as error:
        error.add_note(f"to draw the same again: UMBRA_KILL_SEED={seed}\n{campaign.story()}")
        raise


@dataclass
class Account:
    """What the rows say of one run, added up without the code that wrote them."""

    attempts: list[int] = field(default_factory=list)
    charged: Counter = field(default_factory=Counter)
    by_attempt: dict[int, Counter] = field(default_factory=lambda: defaultdict(Counter))
    settled: dict | None = None
    exports: int = 0

    @property
    def committed(self):
        held = {PRIVATE: STEPS, WARMUP: 1}
        return Counter(held if self.settled is None else self.settled)


def accounts(ledger):
    """Read every reservation from the rows, by its run; a run must have no more than one."""
    by_reservation, by_run = {}, {}
    for row in ledger.rows():
        body = row.content
        if row.kind == Kind.RESERVE:
            assert body["run"] not in by_run, "reserved twice"
            by_reservation[row.reservation] = by_run[body["run"]] = Account()
        elif row.reservation is not None:
            account = by_reservation[row.reservation]
            if row.kind == Kind.ATTEMPT:
                account.attempts.append(body["attempt"])
            elif row.kind == Kind.CHARGE:
                account.charged[body["component"]] += body["steps"]
                account.by_attempt[body["attempt"]][body["component"]] += body["steps"]
            elif row.kind == Kind.SETTLE:
                account.settled = body["charged"]
            elif row.kind == Kind.EXPORT:
                account.exports += 1
    return by_run


class Campaign:
    """Runs on one data set of one ledger, so many at once, until enough kills have happened."""

    def __init__(self, nursery, calm, home, dice, at_once):
        self.nursery, self.calm, self.home, self.dice = nursery, calm, home, dice
        self.at_once = at_once
        self.starts: list[Start] = []
        self.hits = Counter()
        self.runs: dict[str, int] = {}  # that have not ended: starts until they are given up
        self.ended = 0

    def run(self):
        while self.hits.total() < KILLS or (self._missed() and self.hits.total() < 2 * KILLS):
            while len(self.runs) < self.at_once:
                gives_up = self.dice.random() < 0.3
                name = f"run-{self.ended + len(self.runs)}-{self.dice.getrandbits(32):08x}"
                self.runs[name] = self.dice.randint(1, 3) if gives_up else 10**6
            self._round([self._start(name, self._instant()) for name in self.runs])
        while self.runs:
            self._round([self._start(name, NEVER) for name in self.runs])
        assert not self._missed()
        self._spend_what_is_left()

    def story(self):
        """What a person needs who looks for the cause."""
        last = "\n".join(Path(s.life.journal).name + f": {s.phases[-4:]}" for s in self.starts[-3:])
        return f"kills by phase: {dict(self.hits)}; the last starts:\n{last}"

    def _missed(self):
        return set(PHASES) - set(self.hits)

    def _instant(self):
        """Half are drawn over the life, half within the phase that was hit least.

        The first ones are drawn from the making of the ledger.
        """
        if len(self.starts) < 4:
            return Instant(self.dice.uniform(0, self.calm.lasted("open")), "open")
        if self.dice.random() < 0.5:
            return Instant(self.dice.uniform(0, 0.8 * self.calm.lasted()))
        phase = min(PHASES, key=lambda name: (self.hits[name], self.dice.random()))
        n = self.dice.randint(1, 4) if phase in ("charge", "train", "save") else 1
        return Instant(self.dice.uniform(0, self.calm.lasted(phase)), phase, n)

    def _start(self, run, instant):
        journal = self.home / f"journal-{len(self.starts):03d}"
        so_far = sum(start.life.run == run for start in self.starts)
        life = Life(str(self.home), run, str(journal), so_far >= self.runs.get(run, 10**6))
        self.starts.append(Start.of(life, self.nursery, instant))
        return self.starts[-1]

    def _round(self, living):
        """Wait for all of these to be killed or to end, and look after each."""
        while living:
            for start in tuple(living):
                if start.read().is_due():
                    os.kill(start.pid, signal.SIGKILL)
                    code = self.nursery.wait(start.pid)
                elif (code := self.nursery.ask(start.pid)) is None:
                    continue
                living.remove(start)
                self._look(start, code, {other.pid for other in living})
            time.sleep(0.002)

    def _look(self, start, code, living):
        assert code in (0, -signal.SIGKILL), self.nursery.errors()
        phase = start.read().phases[-1][1] if start.phases else "open"
        if code:
            self.hits["export" if phase == "done" else phase] += 1
        try:
            ledger = Ledger.open(self.home / "ledger.db", witness=self.home / "ledger.head")
        except NoLedger:
            assert not any(known.read().heads for known in self.starts)
            return
        # Before the rows, which must cover all that is told here.
        for known in self.starts:
            known.read()
        self._require_sound(ledger)
        by_run = accounts(ledger)
        self._require_covered(by_run, living)
        self._require_within_budget(Budget(ledger), by_run, exactly=not living)
        self._require_sound_checkpoint(start.life.run, by_run)
        if code == 0:
            self._require_ended(start, by_run[start.life.run])
        if code == 0 and self.at_once == 1:  # one of two may die between its commit and its witness
            assert Witness(self.home / "ledger.head").head(ledger.ledger_id) == ledger.head()
        ledger.close()

    def _require_sound(self, ledger):
        heads = {head for start in self.starts for head in start.heads}
        # The first is told after signing began.
        assert ledger.verify(heads, PUBLIC_KEY if heads else None) == []

    def _require_covered(self, by_run, living):
        """Every draw lies within what its own attempt was charged for, and is the only one."""
        masks = [mask for start in self.starts for mask in start.masks]
        noise = [drawn for start in self.starts for drawn in start.drawn]
        assert len(set(masks)) == len(masks) and len(set(noise)) == len(noise), "drawn twice"
        began = Counter()
        for start in self.starts:
            began[start.life.run, start.attempt] += 1
            charged = Counter()
            if start.attempt is not None:
                charged = by_run[start.life.run].by_attempt.get(start.attempt, charged)
            for component in (PRIVATE, WARMUP):
                assert start.charged[component] <= charged[component], "told and not written"
                # One that lives may have asked for more since its journal was read.
                assert start.pid in living or charged[component] <= start.asked[component]
            drawn = [len(start.masks), *(start.noise[size] for size in STEP_DRAWS)]
            assert max(drawn) <= charged[PRIVATE], "steps were drawn that nobody charged"
            assert start.noise[QUERY_DRAWS] <= charged[WARMUP], "a query that nobody charged"
            assert set(start.noise) <= {*STEP_DRAWS, QUERY_DRAWS}
        for run, account in by_run.items():
            assert account.attempts == list(range(1, len(account.attempts) + 1))
            if not living:
                assert all(began[run, attempt] == 1 for attempt in account.by_attempt)
            assert account.charged[PRIVATE] <= STEPS and account.charged[WARMUP] <= 1

    def _require_within_budget(self, budget, by_run, exactly):
        held = sum((account.committed for account in by_run.values()), Counter())
        # The budget is worth exactly so many of each; the audit at the end says so by its own code.
        assert held[PRIVATE] <= RUNS * STEPS and held[WARMUP] <= RUNS
        if exactly and by_run:
            left = RUNS * STEPS - held[PRIVATE], RUNS - held[WARMUP]
            assert budget.quote(DATASET, plan(*left)).admitted
            assert not budget.quote(DATASET, plan(left[0] + 1, left[1])).admitted

    def _require_sound_checkpoint(self, run, by_run):
        search = newest(self.home / run)
        assert search.skipped == ()
        if search.checkpoint is not None:
            assert search.checkpoint.step <= by_run[run].charged[PRIVATE]
            assert search.checkpoint.attempt in by_run[run].attempts

    def _require_ended(self, start, account):
        """It is settled by what it charged, and has charged all unless it was given up."""
        charged = {name: account.charged[name] for name in (PRIVATE, WARMUP)}
        assert account.settled == charged
        if not start.life.give_up:
            assert charged == {PRIVATE: STEPS, WARMUP: 1}
            found = newest(self.home / start.life.run).checkpoint
            assert account.exports == (found is not None and found.step > 0)
        self.runs.pop(start.life.run, None)
        self.ended += 1

    def _spend_what_is_left(self):
        """What was given back is there to the last step, and not one more."""
        life = Life(str(self.home), "filler", "", give_up=False)
        ledger = life.open()
        budget = Budget(ledger)
        held = sum((Counter(a.settled) for a in accounts(ledger).values()), Counter())
        left = RUNS * STEPS - held[PRIVATE], RUNS - held[WARMUP]
        with pytest.raises(BudgetRefused):
            life.reserve(budget, "too much", plan(left[0] + 1, left[1]))
        life.reserve(budget, "exactly", plan(*left))
        with pytest.raises(BudgetRefused):
            life.reserve(budget, "more", plan(1, 1))
        heads = [head for start in self.starts for head in start.heads]
        assert audit_ledger(ledger, heads, public_key=PUBLIC_KEY).findings == ()
        ledger.close()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    nursery = Nursery(tmp_path_factory.mktemp("nursery") / "errors")
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def calm(nursery, tmp_path_factory):
    """A life that nobody disturbs, which tells how long its phases last."""
    home = tmp_path_factory.mktemp("calm")
    start = Start.of(Life(str(home), "calm", str(home / "journal"), give_up=False), nursery, NEVER)
    assert nursery.wait(start.pid) == 0, nursery.errors()
    assert {name for _, name in start.read().phases} == {*PHASES, "done"}
    return start
