"""The whole protocol against a naive model: lists of Python, closed forms and no database."""

import math
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from privacy.accounting.rdp import ORDERS
from privacy.audit.replay import Replay
from privacy.budget import Budget, Component
from privacy.budget.identity import Content
from privacy.errors import BudgetRefused, InvalidRequest
from privacy.ledger import Ledger
from privacy.mechanisms import Gaussian

KEY = bytes(range(32))
DELTA = 1e-5
NAMES, PARTS = ["a", "b", "c"], ["train", "holdout"]

# Contents are sets of whole numbers, all of them in the sketch, so that a naive model can tell
# exactly what they share: 3 is a changed copy of 0, 4 holds two of the forty of 1, 5 one of 2.
SETS = [
    range(40), range(100, 140), range(200, 300), [*range(1, 30), *range(900, 911)],
    [*range(138, 140), *range(300, 338)], [299, *range(400, 499)],
]  # fmt: skip
SETS = [set(numbers) for numbers in SETS]
CONTENTS = [
    Content(f"print-{i}", 100 + i, tuple(f"{number:016x}" for number in sorted(numbers)))
    for i, numbers in enumerate(SETS)
]


def naive_epsilon(curve):
    """Canonne, Kamath, Steinke 2020 for Gaussians, whose RDP is α·Σ T/(2σ²)."""
    if curve == 0:
        return 0.0
    return max(
        0.0,
        min(
            a * curve + math.log1p(-1 / a) - math.log(DELTA * a) / (a - 1)
            for a in map(float, ORDERS)
        ),
    )


def cost(plan, steps=None):
    return sum(
        (plan[name][1] if steps is None else steps[name]) / (2 * plan[name][0] ** 2)
        for name in plan
    )


class BudgetModel(RuleBasedStateMachine):
    """Every call is made on both; both must say the same, and nothing is ever over-granted."""

    reservations = Bundle("reservations")
    charges = Bundle("charges")

    @initialize()
    def start(self):
        self.folder = Path(tempfile.mkdtemp())
        self.budget = Budget(Ledger.open(self.folder / "ledger.db", KEY))
        self.limits, self.closed, self.accepted = {"a": 3.0}, set(), set()
        self.budget.declare("a", 3.0, DELTA)
        self.bound, self.held, self.calls = {}, {}, 0

    def teardown(self):
        if hasattr(self, "budget"):
            assert self.budget.ledger.verify() == []
            self.budget.ledger.close()
            shutil.rmtree(self.folder)

    def key(self):
        self.calls += 1
        return f"key-{self.calls}"

    # --- the model ---

    def committed(self, name, part):
        return sum(
            cost(r["plan"], r["charged"] if r["settled"] else None)
            for r in self.held.values()
            if (r["name"], r["part"]) == (name, part)
        )

    def binds(self, name, part, which):
        """Whether the model lets this content stand for this part."""
        if which in self.bound:
            return self.bound[which] == (name, part)
        for other, (owner, its_part) in self.bound.items():
            shared = len(SETS[which] & SETS[other])
            smaller = min(len(SETS[which]), len(SETS[other]))
            if owner == name and (its_part == part or shared):
                return False
            near = shared >= 0.05 * smaller
            if owner != name and near and frozenset((owner, name)) not in self.accepted:
                return False
        return True

    # --- the calls ---

    @rule(name=st.sampled_from(NAMES), epsilon=st.sampled_from([1.0, 3.0]))
    def declare(self, name, epsilon):
        if self.limits.get(name, epsilon) != epsilon:
            with pytest.raises(BudgetRefused):
                self.budget.declare(name, epsilon, DELTA)
        else:
            assert self.budget.declare(name, epsilon, DELTA).epsilon == epsilon
            self.limits[name] = epsilon

    @rule(name=st.sampled_from(NAMES), sure=st.integers(0, 3))
    def close(self, name, sure):
        if name in self.limits and sure == 3:  # or there would soon be nothing left to do
            assert self.budget.close(name).closed
            self.closed.add(name)

    @rule(pair=st.permutations(NAMES))
    def accept_overlap(self, pair):
        one, other, _ = pair
        if one in self.limits and other in self.limits:
            self.budget.accept_overlap(one, other)
            self.accepted.add(frozenset((one, other)))

    @rule(
        target=reservations,
        name=st.sampled_from(NAMES),
        part=st.sampled_from(PARTS),
        which=st.integers(0, len(SETS) - 1),
        sigma=st.sampled_from([5.0, 8.0, 20.0]),
        steps=st.integers(1, 40),
        warm=st.booleans(),
    )
    def reserve(self, name, part, which, sigma, steps, warm):
        plan = {"train": (sigma, steps)} | ({"warm": (9.0, 1)} if warm else {})
        components = [Component(n, Gaussian(*parameters)) for n, parameters in plan.items()]
        asked = {
            "run_id": "run", "dataset": name, "content": CONTENTS[which], "unit": "one image",
            "partition": part, "records_per_unit": 1, "plan": components, "void": False,
            "idempotency_key": self.key(),
        }  # fmt: skip
        together = naive_epsilon(self.committed(name, part) + cost(plan))
        fits = (
            name in self.limits
            and name not in self.closed
            and self.binds(name, part, which)
            and together <= self.limits[name]
        )
        if name in self.limits:
            quote = self.budget.quote(name, components, part)
            assert quote.together == pytest.approx(together, abs=1.1e-4)
            assert quote.admitted or not fits
        if not fits:
            with pytest.raises(BudgetRefused):
                self.budget.reserve(**asked)
            return multiple()
        held = self.budget.reserve(**asked)
        assert self.budget.reserve(**asked) == held  # the answer was lost and asked for again
        self.bound[which] = (name, part)
        self.held[held.id] = {
            "name": name, "part": part, "plan": plan, "charged": dict.fromkeys(plan, 0),
            "attempt": 0, "settled": False,
        }  # fmt: skip
        return held.id

    @rule(which=reservations)
    def begin_attempt(self, which):
        model, key = self.held[which], self.key()
        if model["settled"]:
            with pytest.raises(BudgetRefused):
                self.budget.begin_attempt(which, key)
            return
        model["attempt"] += 1
        assert self.budget.begin_attempt(which, key) == model["attempt"]
        assert self.budget.begin_attempt(which, key) == model["attempt"]

    @rule(
        target=charges,
        which=reservations,
        component=st.sampled_from(["train", "warm"]),
        steps=st.integers(1, 25),
        behind=st.sampled_from([0, 0, 0, 0, 1, -1]),
    )
    def charge(self, which, component, steps, behind):
        model = self.held[which]
        attempt = model["attempt"] - behind
        call = (which, component, steps, attempt, self.key())
        left = model["plan"].get(component, (0, 0))[1] - model["charged"].get(component, 0)
        if component not in model["plan"] or attempt < 1 or (behind and not model["settled"]):
            with pytest.raises(InvalidRequest):
                self.budget.charge(*call)
        elif model["settled"] or steps > left:
            with pytest.raises(BudgetRefused):
                self.budget.charge(*call)
        else:
            receipt = self.budget.charge(*call)
            model["charged"][component] += steps
            assert receipt.left == left - steps
            return call, receipt
        return multiple()

    @rule(made=charges)
    def charge_again(self, made):
        call, receipt = made
        assert self.budget.charge(*call) == receipt

    @rule(which=reservations, export=st.booleans())
    def settle(self, which, export):
        model = self.held[which]
        settlement = self.budget.settle(which)
        model["settled"] = True
        assert settlement.charged == model["charged"]
        assert settlement.refunded == {
            name: steps - model["charged"][name] for name, (_, steps) in model["plan"].items()
        }
        assert self.budget.settle(which) == settlement
        if export and any(model["charged"].values()):
            self.budget.record_export(which, "a" * 64, "images", used=model["charged"])

    # --- what holds at all times ---

    @invariant()
    def the_odometer_is_the_naive_sum(self):
        for name in getattr(self, "limits", ()):
            odometer = self.budget.odometer(name)
            parts = {part for owner, part in self.bound.values() if owner == name}
            spent = {
                part: naive_epsilon(
                    sum(
                        cost(r["plan"], r["charged"])
                        for r in self.held.values()
                        if (r["name"], r["part"]) == (name, part)
                    )
                )
                for part in parts
            }
            assert odometer.partitions == pytest.approx(spent, abs=1.1e-4)
            most = max((naive_epsilon(self.committed(name, part)) for part in parts), default=0.0)
            assert odometer.committed == pytest.approx(most, abs=1.1e-4)
            assert odometer.committed <= self.limits[name] + 1e-4
            assert odometer.closed == (name in self.closed)

    @invariant()
    def another_reader_finds_nothing_broken(self):
        if hasattr(self, "budget"):
            replay = Replay()
            for row in self.budget.ledger.rows():
                replay.feed(row)
            assert replay.findings == []


BudgetModel.TestCase.settings = settings(max_examples=20, stateful_step_count=25)
TestBudgetModel = BudgetModel.TestCase
