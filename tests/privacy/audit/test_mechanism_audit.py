"""The audit of the mechanism passes what ships; tests/privacy/planted shows what it catches."""

import dataclasses
import json
import math
import threading

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.accounting import accountant
from privacy.audit.distinguish import LowerBound
from privacy.audit.mechanism import Check, ComposedBound, StepPath, audit_mechanism
from privacy.audit.mechanism import laws as noise
from privacy.audit.mechanism.audit import levels, sensitivity
from privacy.audit.mechanism.laws import (
    FALSE_ALARM,
    Law,
    batch_laws,
    inclusion,
    judge,
    paired,
    size_variance,
)
from privacy.audit.mechanism.runs import (
    IDLE,
    LAYERS,
    Evidence,
    Toy,
    mean_output,
    run_workers,
    toy_size,
)
from privacy.dp_sgd import DPSGD
from privacy.errors import InvalidRequest
from privacy.gradients import ENGINES
from tests.privacy.planted.steps import PrivateMean

ACCOUNTED = DPSGD(records=60_000, sampling_probability=0.25, noise_multiplier=1.3, clip_norm=0.7)


def audit(dpsgd=ACCOUNTED, views=2, trials=80, **options):
    return audit_mechanism(dpsgd, views=views, trials=trials, **options)


def failed(found):
    return [check for check in found.checks if not check.passed]


@pytest.fixture(scope="module")
def sound():
    return audit()


class TestWhatShips:
    @pytest.mark.parametrize("engine", ENGINES)
    def test_under_every_engine(self, engine):
        found = audit(path=StepPath(engine=ENGINES[engine]))
        assert failed(found) == []
        assert not found.broken
        assert found.engine == engine

    @pytest.mark.parametrize(
        ("dpsgd", "options"),
        [
            (DPSGD(3, 1.0, 20.0, 1e-3), {"views": 1}),
            (DPSGD(10**6, 0.004, 0.6, 1e4), {"views": 5}),
            (DPSGD(500, 0.5, 0.01, 1.0), {"workers": (1,), "steps": 4}),
            (DPSGD(500, 0.3, 3.0, 1.0), {"workers": (3, 2), "delta": 1e-2}),
        ],
    )
    def test_whatever_its_parameters(self, dpsgd, options):
        found = audit(dpsgd, **options)
        assert failed(found) == []
        assert not found.broken

    @pytest.mark.slow
    def test_at_length(self):
        found = audit(DPSGD(60_000, 1 / 15, 2.5, 1.0), views=4, trials=400)
        assert failed(found) == []
        assert not found.broken

    def test_reports_what_was_audited(self):
        found = audit(views=3, workers=(2,), steps=3, delta=1e-6, confidence=0.9)
        assert (found.views, found.workers, found.delta, found.clip_norm) == (3, (2,), 1e-6, 0.7)
        assert found.records == toy_size(0.25) == 8
        assert [bound.steps for bound in found.bounds] == [1, 3]
        for bound in found.bounds:
            pld = accountant("pld").epsilon([ACCOUNTED.mechanism(bound.steps)], 1e-6)
            assert 0 <= bound.claim - pld < 1e-4
            assert (bound.lower.confidence, bound.lower.trials) == (0.9, 80)
        record = json.loads(json.dumps(found.to_record()))
        assert record["broken"] is False
        assert len(record["checks"]) == len(found.checks) == 17


class TestLowerBound:
    def test_shows_a_good_part_of_the_claim(self):
        """q = 1, where telling apart is easiest; far from 0 and below the claim."""
        found = audit(DPSGD(100, 1.0, 0.5, 1.0), trials=100, workers=(1,), confidence=0.95)
        for bound in found.bounds:
            assert 0.5 < bound.lower.epsilon < bound.claim

    def test_scores_are_likelihood_ratios(self):
        """Of two mixtures of normal densities, by scipy."""
        q, sigma, C = 0.25, 1.3, 0.7
        toy = Toy(dataclasses.replace(ACCOUNTED, records=8), 2)
        evidence = Evidence.gather(StepPath(), toy, (1,), 8, 2)
        gradients = evidence.present[1].gradients
        x = gradients[:, :, :, toy.canary].sum(axis=-1) * q * 8 / (C * math.sqrt(LAYERS))
        absent, taken = stats.norm(0, sigma).pdf(x), stats.norm(1, sigma).pdf(x)
        ratios = np.log(((1 - q) * absent + q * taken) / absent).sum(axis=1)
        np.testing.assert_allclose(evidence.scores(True, 2), ratios, rtol=1e-9)

    def test_above_the_claim_is_broken(self, sound):
        bound = ComposedBound(1, claim=1.0, lower=LowerBound(1.1, 4.0, 0.999, 80))
        assert not sound.broken
        assert dataclasses.replace(sound, bounds=(bound,)).broken
        at_claim = dataclasses.replace(bound, claim=1.1)
        assert not dataclasses.replace(sound, bounds=(at_claim,)).broken

    def test_a_failed_check_is_broken(self, sound):
        check = Check("something", False, None, "was wrong")
        assert dataclasses.replace(sound, checks=(check,)).broken


class TestBadRequests:
    @pytest.mark.parametrize(
        "change",
        [
            {"views": 0},
            {"trials": 79},
            {"trials": True},
            {"steps": 1},
            {"workers": ()},
            {"workers": (0, 1)},
            {"workers": (1, 1)},
            {"delta": 0.0},
            {"delta": 1.0},
            {"confidence": 1.0},
        ],
    )
    def test_are_refused(self, change):
        with pytest.raises(InvalidRequest):
            audit(**change)


class TestToy:
    @pytest.mark.parametrize("views", [1, 2, 5])
    @pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
    def test_a_record_adds_what_the_audit_expects(self, engine, views):
        """Its clipped gradient is C / sqrt(layers) on its own coordinates, by autograd."""
        toy = Toy(dataclasses.replace(ACCOUNTED, records=8), views)
        for record in range(8):
            toy.model.zero_grad()
            mean_output(toy.model, toy.records[record]).backward()
            own = torch.stack([layer.grad for layer in toy.model.layers])
            norm = float(toy.norms[record])
            expected = torch.zeros_like(own)
            expected[:, record] = 0.7 * norm / math.sqrt(LAYERS)
            torch.testing.assert_close(own, expected)
            expected *= min(1, 1 / norm)
            part = toy.records[record : record + 1]
            found = engine.sum_of_clipped(toy.model, mean_output, (part,), 0.7, 1)
            torch.testing.assert_close(torch.stack(list(found.values())), expected)

    @pytest.mark.parametrize("views", [2, 3, 8])
    def test_views_point_in_different_directions(self, views):
        toy = Toy(dataclasses.replace(ACCOUNTED, records=8), views)
        first, second = toy.records[0, :2].flatten(1)
        assert abs(float(first @ second)) < 1e-6 * float(first.norm() * second.norm())

    def test_norms_lie_on_both_sides_of_the_clip_norm(self):
        norms = Toy(dataclasses.replace(ACCOUNTED, records=8), 2).norms
        assert {0.99, 1.01, 1.5} < set(norms)
        assert norms[-1] == 1.01 and norms.max() == 3e4

    def test_batches_are_of_about_two(self):
        assert [toy_size(q) for q in (1.0, 0.25, 0.02, 1e-6)] == [8, 8, 100, 512]


class TestWorkers:
    @pytest.mark.parametrize("size", [1, 2, 5])
    def test_sum_over_ranks(self, size):
        def work(collective):
            values = [collective.broadcast_from_rank0(collective.rank + 7)]
            for i in range(3):
                mine = torch.tensor([collective.rank + 1.0, i])
                values.append(collective.sum({"a": mine})["a"].tolist())
            return (collective.rank, collective.size), values

        total = size * (size + 1) / 2
        expected = [7, *([total, size * i] for i in range(3))]
        found = run_workers(size, work)
        assert found == [((rank, size), expected) for rank in range(size)]

    def test_only_one_works_at_a_time(self):
        working, most = [], []

        def work(collective):
            for _ in range(20):
                working.append(collective.rank)
                most.append(len(working))
                torch.ones(100).sum()
                working.remove(collective.rank)
                collective.sum({"a": torch.ones(1)})

        run_workers(3, work)
        assert max(most) == 1

    def test_the_first_error_is_the_one_to_see(self):
        def work(collective):
            if collective.rank == 1:
                raise ZeroDivisionError("here")
            collective.sum({"a": torch.ones(1)})

        before = threading.active_count()
        with pytest.raises(ZeroDivisionError, match="here"):
            run_workers(3, work)
        assert threading.active_count() == before


def simulated_masks(rng, q, n):
    return {size: rng.random((10, 2, 2, n)) < q for size in (1, 2)}


def simulated_restarts(rng, q, n):
    return {size: rng.random((10, 2, n)) < q for size in (1, 2)}


class TestLaws:
    """Each is true of what it should be true of, as often as its p-value says."""

    def test_p_values_of_noise_are_honest(self):
        rng = np.random.default_rng(0)
        smallest = []
        for _ in range(300):
            drawn = {size: rng.standard_normal((20, 2, LAYERS * IDLE)) for size in (1, 2)}
            laws = [
                noise.variance("v", drawn),
                noise.normality("n", drawn),
                noise.independence("i", drawn, LAYERS),
            ]
            smallest.append([check.p_value for check in judge(laws)])
        self.require_honest(np.array(smallest))

    @pytest.mark.parametrize(("q", "n"), [(0.25, 8), (0.02, 100), (0.9, 12), (0.5, 9)])
    def test_p_values_of_batches_are_honest(self, q, n):
        rng = np.random.default_rng(1)
        smallest = [
            [
                check.p_value
                for check in judge(
                    batch_laws(simulated_masks(rng, q, n), simulated_restarts(rng, q, n), q)
                )
            ]
            for _ in range(200)
        ]
        self.require_honest(np.array(smallest))

    @staticmethod
    def require_honest(p_values):
        runs = len(p_values)
        for column in p_values.T:
            below = int((column < 0.05).sum())
            # The moments of batch sizes follow their law nearly, so 0.05 may be a little more.
            assert stats.binomtest(below, runs, 0.06, alternative="greater").pvalue > 1e-3
            assert column.min() > 1e-5

    @pytest.mark.parametrize("factor", [0.5, 2 / 3, 3 / 2, 2.0])
    def test_another_spread_is_noticed(self, factor):
        drawn = {1: np.random.default_rng(2).standard_normal((40, 2, 24)) * factor}
        assert not judge([noise.variance("v", drawn)])[0].passed

    def test_one_coordinate_is_enough(self):
        drawn = np.random.default_rng(3).standard_normal((80, 2, 24))
        drawn[..., 5] = 0
        assert not judge([noise.variance("v", {1: drawn})])[0].passed

    def test_another_shape_of_noise_is_noticed(self):
        rng = np.random.default_rng(4)
        uniform = rng.uniform(-math.sqrt(3), math.sqrt(3), (80, 2, 24))
        assert not judge([noise.normality("n", {1: uniform})])[0].passed

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_noise_that_follows_itself_is_noticed(self, axis):
        drawn = np.random.default_rng(5).standard_normal((80, 2, LAYERS, IDLE))
        half = 0.5 * drawn + math.sqrt(0.75) * np.roll(drawn, 1, axis=axis)
        flat = {1: half.reshape(80, 2, -1)}
        assert not judge([noise.independence("i", flat, LAYERS)])[0].passed

    def test_a_vector_seen_before_is_found(self):
        drawn = np.random.default_rng(6).standard_normal((80, 2, 24))
        assert noise.freshness("f", {1: drawn[:40], 2: drawn[40:]}, LAYERS).passed
        drawn[70, 1, 8:16] = drawn[3, 0, 16:24]
        assert not noise.freshness("f", {1: drawn[:40], 2: drawn[40:]}, LAYERS).passed

    @pytest.mark.parametrize("wrong", [0.15, 0.4])
    def test_another_rate_is_noticed(self, wrong):
        masks = np.random.default_rng(7).random((10, 2, 2, 8)) < wrong
        assert inclusion(masks, 0.25).min() < 1e-4

    def test_a_record_that_is_never_taken_is_noticed(self):
        masks = np.random.default_rng(8).random((125, 2, 2, 8)) < 0.25
        masks[..., 3] = False
        assert inclusion(masks, 0.25).min() < 1e-30

    def test_everybody_at_q_1(self):
        masks = np.ones((10, 2, 2, 8), dtype=bool)
        assert all(check.passed for check in judge(batch_laws({1: masks}, {1: masks[:, 0]}, 1.0)))
        masks[0, 0, 0, 0] = False
        assert size_variance(masks, 1.0) == 0

    @pytest.mark.parametrize(("n", "stride"), [(8, 1), (8, 2), (9, 2), (7, 3), (3, 5)])
    def test_pairs_share_no_record(self, n, stride):
        one, other = paired(np.arange(n)[None], stride)
        both = np.concatenate([one[0], other[0]])
        assert len(set(both.tolist())) == len(both)
        assert (other - one == stride).all()

    @pytest.mark.parametrize("change", [1e-3, -1e-3])
    def test_a_step_that_is_not_exact_is_found(self, change):
        units, norms = np.zeros((5, LAYERS, 8 + IDLE)), np.array([0.5, *[2.0] * 7])
        units[0, :, 3] = units[2, :, 7] = 1.0
        units[3, :, 0] = 0.5
        assert levels("l", units, norms).passed
        for index in ((0, 1, 3), (4, 0, 0), (1, 2, 9)):
            wrong = units.copy()
            wrong[index] += change
            assert not levels("l", wrong, norms).passed
        twice = units.copy()
        twice[0, :, 3] = 2.0
        assert not levels("l", twice, norms).passed

    def test_sensitivity_is_told_by_every_step(self):
        def found(engine, start):
            path = StepPath(engine=engine, key=lambda: start.to_bytes(32, "big"))
            toy = Toy(dataclasses.replace(ACCOUNTED, records=8), 2)
            return sensitivity("s", path, toy, (1, 2))

        record = ENGINES["record"]
        assert all(found(record, start).passed for start in range(4))
        # This start's batches weigh the canary down or leave it alone: the farthest that it moves
        # the gradient is what is allowed, as if nothing were wrong.
        wrong = found(PrivateMean(record), 4)
        assert "by 0 to 1 of the bound" in wrong.detail
        assert not wrong.passed


class TestJudge:
    def test_corrects_for_the_number_of_tests(self):
        law = Law("a", np.array([0.5, 1e-9, 0.2]), "")
        (alone,) = judge([law])
        assert not alone.passed
        assert alone.p_value == pytest.approx(3e-9)
        at_level = Law("b", np.array([FALSE_ALARM / 2]), "")
        assert not judge([at_level])[0].passed
        assert not judge([Law("b", np.array([0.9 * FALSE_ALARM]), "")])[0].passed
        assert judge([Law("b", np.array([0.9 * FALSE_ALARM]), "")] * 2)[1].passed

    def test_nan_fails(self):
        assert not judge([Law("a", np.array([0.5, math.nan]), "")])[0].passed


def test_a_step_that_stops_for_a_record_is_broken():
    class Stops(type(StepPath().engine)):
        def sum_of_clipped(self, model, loss, records, clip_norm, micro_batch):
            if not records[0].isfinite().all():
                raise ValueError("a record is not finite")
            return super().sum_of_clipped(model, loss, records, clip_norm, micro_batch)

    found = audit(path=StepPath(engine=Stops()))
    assert [check.name for check in failed(found)] == ["a record that is not finite adds nothing"]
    assert "ValueError" in failed(found)[0].detail


def test_gradients_that_are_not_finite_are_broken_and_reported():
    class Overflows(StepPath().step):
        def __call__(self, *step):
            return {name: g / 0 for name, g in super().__call__(*step).items()}

    found = audit(path=StepPath(step=Overflows))
    assert found.broken
    assert "every gradient is finite" in [check.name for check in failed(found)]
    assert json.loads(json.dumps(found.to_record()))["broken"] is True
