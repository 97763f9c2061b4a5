"""Figures against a private holdout: paid for by its own part of the budget, or not there."""

import json
import re
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import metrics, stages
from pipeline.metrics import DP_METRICS, PaidMetrics, paid_metrics, release
from pipeline.plan import plan
from pipeline.runs.directory import RunDirectory
from pipeline.runs.engine import submit
from pipeline.runs.ingest import ingest
from pipeline.spec import SpecError
from pipeline.tracking.release import Release
from privacy.accounting.guarantee import group
from privacy.budget import Component, Reservation
from privacy.errors import BudgetRefused, DataError, IntegrityBroken, UmbraError
from privacy.ledger import Head
from privacy.mechanisms import DiscreteLaplace
from synth.storage import write_json

PRIVATE = ("    public: true", "    public: false")
ASKED = ("  classifiers: [logreg, mlp]", "  classifiers: [logreg, mlp]\n  release: dp")
COUNTED = (ASKED[0], f"{ASKED[1]}\n  release_class_counts: true\n  release_epsilon: 0.6")
RESULTS = {
    "synthetic": {
        "logreg": {"confusion": [[300, 100], [50, 150]]},
        "mlp": {"confusion": [[400, 0], [0, 200]]},
    }
}


def reservation(scale, queries=2, counted=True):
    plan = [Component("accuracy", DiscreteLaplace(scale, queries))]
    plan += [Component("class-counts", DiscreteLaplace(scale))] if counted else []
    return Reservation(
        "r-1", "run", "blots", 600, "image", 1, False, None, tuple(plan), Head(1, "0" * 64)
    )


class TestPlan:
    def test_every_query_has_an_equal_share(self, blots_spec):
        made = plan(blots_spec(PRIVATE, COUNTED), trial=False)
        accuracy, counts = (part.mechanism for part in made.holdout_components)
        assert (accuracy.steps, counts.steps) == (2, 1)
        assert accuracy.noise_multiplier == counts.noise_multiplier == pytest.approx(5.0)
        assert any("holdout's own part" in note for note in made.notes)

    def test_nothing_is_paid_for_unless_it_is_asked(self, blots_spec):
        assert plan(blots_spec(PRIVATE), trial=False).holdout_components == ()

    def test_a_public_holdout_is_not_paid_for(self, blots_spec):
        with pytest.raises(SpecError, match="public holdout are released as they are"):
            blots_spec(ASKED)

    def test_what_would_do_nothing_is_refused(self, blots_spec):
        idle = (ASKED[0], f"{ASKED[0]}\n  release_epsilon: 2.0")
        with pytest.raises(SpecError, match="release: dp beside it"):
            blots_spec(PRIVATE, idle)


class TestReserve:
    def test_it_is_charged_to_a_part_of_its_own(self, house, blots_spec):
        run = house.reserve(blots_spec(PRIVATE, COUNTED))
        state = run.state()
        held = house.budget.reservation(state.holdout_reservation_id)
        assert held.records == 20 and held.void is False
        assert [part.name for part in held.plan] == ["accuracy", "class-counts"]
        parts = [row.content["partition"] for row in house.budget.ledger.rows(dataset="blots")
                 if row.kind == "partition"]  # fmt: skip
        assert parts == ["train", "holdout"]
        # The training alone takes ε = 8 of 8.5: in sequence the holdout's 0.6 would not fit.
        assert house.budget.odometer("blots").committed < 8.2

    def test_a_holdout_that_shares_an_image_is_refused(self, house, blots_spec, blots, tmp_path):
        with np.load(blots / "train.npz") as train, np.load(blots / "holdout.npz") as holdout:
            images = np.concatenate([holdout["images"], train["images"][7:8]])
            np.savez(tmp_path / "h.npz", images=images, labels=np.arange(21) % 2)
        mixed = ("path: holdout.npz", f"path: {tmp_path}/h.npz")
        with pytest.raises(DataError, match="shares images with the training set"):
            house.reserve(blots_spec(PRIVATE, ASKED, mixed))
        assert house.kinds() == ["genesis", "declare", "facts"]

    def test_both_or_none(self, house, blots_spec):
        dear = (ASKED[0], f"{ASKED[1]}\n  release_epsilon: 90.0")
        house.declare(blots_spec(PRIVATE))
        with pytest.raises(BudgetRefused, match="does not admit"):
            submit(blots_spec(PRIVATE, dear), house.home)
        assert house.budget.odometer("blots").committed == 0
        house.reserve(blots_spec(PRIVATE, ASKED))

    def test_a_run_that_cannot_remember_gives_both_back(self, house, blots_spec, monkeypatch):
        def full(self, **changes):
            raise UmbraError("No space left on device")

        house.declare(blots_spec(PRIVATE))
        with monkeypatch.context() as patched:
            patched.setattr(RunDirectory, "update", full)
            with pytest.raises(UmbraError, match="No space"):
                submit(blots_spec(PRIVATE, ASKED), house.home)
        meter = house.budget.odometer("blots")
        assert (meter.committed, meter.open_reservations) == (0.0, 0)

    def test_again_reserves_once(self, house, blots_spec):
        spec = blots_spec(PRIVATE, ASKED)
        run = house.reserve(spec)
        first = run.state()
        run.update(reservation_id=None, holdout_reservation_id=None, stages=())
        ingest(run, spec, plan(spec, trial=False), house.key, house.budget)
        assert run.state().holdout_reservation_id == first.holdout_reservation_id
        assert house.kinds().count("reserve") == 2


class TestRelease:
    @pytest.fixture(scope="class")
    def by_scale(self):
        """Some releases at each of two scales; every interval in them takes milliseconds."""
        counts = {2.0: 100, 10.0: 300}
        results = {"synthetic": {"logreg": RESULTS["synthetic"]["logreg"]}}
        return {
            scale: [release(results, reservation(scale, 1)) for _ in range(count)]
            for scale, count in counts.items()
        }

    def test_noise_is_of_the_scale_that_was_charged(self, by_scale):
        for scale, drawn in by_scale.items():
            noise = [round(d.classifiers["logreg"].value * 600) - 450 for d in drawn]
            noise += [
                c.value - t for d in drawn for c, t in zip(d.class_counts, (400, 200), strict=True)
            ]
            # Var = 2 a / (1 - a)^2 with a = exp(-1/scale); the fourth moment of a Laplace is 6 Var²
            a = np.exp(-1 / scale)
            variance = 2 * a / (1 - a) ** 2
            spread = variance * np.sqrt(5 / len(noise))
            assert abs(np.mean(np.square(noise)) - variance) < 5 * spread
            assert abs(np.mean(noise)) < 5 * np.sqrt(variance / len(noise))

    def test_draws_of_the_queries_are_independent(self, by_scale):
        drawn = by_scale[10.0]
        columns = np.array([
            [d.classifiers["logreg"].value, *(c.value for c in d.class_counts)] for d in drawn
        ])  # fmt: skip
        off = np.corrcoef(columns, rowvar=False)[np.triu_indices(3, 1)]
        assert np.all(np.abs(off) < 5 / np.sqrt(len(drawn)))

    def test_intervals_have_their_stated_coverage(self, by_scale):
        drawn = [each.classifiers["logreg"] for each in by_scale[10.0]]
        count = len(drawn)
        held = sum(d.low <= 0.75 <= d.high for d in drawn)
        assert 0.95 * count - 5 * np.sqrt(count * 0.05 * 0.95) < held <= count
        assert not all(abs(d.value - 0.75) < 0.01 for d in drawn)
        assert all(d.population_low < d.low and d.high < d.population_high for d in drawn)

    def test_epsilon_is_that_of_all_queries(self):
        assert release(RESULTS, reservation(5.0)).epsilon == pytest.approx(0.6)
        assert release(RESULTS, reservation(7.0)).epsilon == 0.4286  # 3/7, rounded up
        plain = release(RESULTS, reservation(5.0, counted=False))
        assert 0.4 <= plain.epsilon <= 0.4001 and plain.class_counts == ()

    def test_reads_back_and_may_go_to_mlflow(self):
        paid = release(RESULTS, reservation(5.0))
        assert PaidMetrics.from_dict(json.loads(json.dumps(asdict(paid)))) == paid
        shown = Release.paid(paid.flat()).values
        assert {"dp.epsilon", "dp.mlp.accuracy_low", "dp.class.1.count"} <= set(shown)

    def test_a_damaged_file_is_reported(self, finished):
        _, run = finished
        assert paid_metrics(run) is None
        (run.release / DP_METRICS).write_text('{"records": 3}')
        with pytest.raises(IntegrityBroken, match="damaged"):
            paid_metrics(run)


class TestStage:
    """The stage with the real ledger; measuring is pretended."""

    @pytest.fixture
    def evaluated(self, house, blots_spec, monkeypatch):
        run = house.reserve(blots_spec(PRIVATE, COUNTED))
        budget = house.budget

        class Call:
            def __init__(self, call):
                self.remote = call

        manager = SimpleNamespace(
            begin_attempt=Call(budget.begin_attempt),
            charge=Call(budget.charge),
            settle=Call(budget.settle),
        )
        for module in ("pipeline.cluster.calls", "pipeline.cluster.budget_actor"):
            monkeypatch.setattr(f"{module}.get_result", lambda value: value)
        context = SimpleNamespace(budget=budget, manager=manager, run=run)

        def pay():
            return stages._pay(context, run.state().holdout_reservation_id, RESULTS)

        return house, run, pay

    def test_it_is_charged_before_it_is_drawn(self, evaluated, monkeypatch):
        house, _, pay = evaluated
        seen = {}

        def draw(results, paid_by):
            seen.update(house.budget.charged_steps(paid_by.id))

        monkeypatch.setattr(metrics, "release", draw)
        pay()
        assert seen == {"accuracy": 2, "class-counts": 1}
        assert house.kinds()[-1] == "settle"

    def test_a_crash_after_the_charge_forfeits_it(self, evaluated, monkeypatch):
        house, _, pay = evaluated

        def die(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(metrics, "release", die)
            with pytest.raises(KeyboardInterrupt):
                pay()
        before = house.kinds()
        assert pay() is None
        assert house.kinds() == before

    def test_a_crash_before_the_charge_costs_nothing(self, evaluated):
        house, run, pay = evaluated
        house.budget.begin_attempt(run.state().holdout_reservation_id, "lost")
        assert pay().records == 20

    @pytest.mark.parametrize("k", [1, 3])
    def test_the_card_says_what_they_disclose_together_with_the_images(
        self, house, blots_spec, tmp_path, k
    ):
        owned = ("  epsilon: 8\n", f"  epsilon: 8\n  unit: patient\n  records_per_unit: {k}\n")
        run = house.finish(house.reserve(blots_spec(PRIVATE, COUNTED, owned)))
        budget, state = house.budget, run.state()
        train, holdout = map(
            budget.reservation, (state.reservation_id, state.holdout_reservation_id)
        )
        attempt = budget.begin_attempt(holdout.id, "attempt")
        for part in holdout.plan:
            budget.charge(holdout.id, part.name, part.mechanism.steps, attempt, part.name)
        write_json(run.release / DP_METRICS, asdict(release(RESULTS, holdout)))
        card = (house.export(run, tmp_path / "out") / "README.md").read_text()
        assert "cost ε = 0.6 at δ = 0 for each of the 20 records of the holdout" in card
        found = re.search(r"Up to 3 records of one patient .* than ε = ([0-9.]+) allows", card)
        assert (found is not None) == (k == 3)
        if found:
            # More than either set discloses of three records by itself.
            alone = group([part.mechanism for part in train.plan], 1e-3, 3).epsilon
            assert float(found[1]) > max(alone, 3 * 0.6)
