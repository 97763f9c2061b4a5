"""The training loop against a naive rewrite, crashes, refusals, and every planted bug.

Each `check_*` is run as a test on what ships, and again under each bug that it has to catch.
"""

import copy
import itertools
import math
import random
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from privacy.collective import SingleProcess
from privacy.dp_sgd import DPSGD, PrivateGradient
from privacy.errors import (
    BudgetRefused,
    IntegrityBroken,
    InvalidRequest,
    LedgerUnavailable,
    UmbraError,
)
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler
from privacy.records import LabelledRecords, own
from synth.checkpoint import newest
from synth.methods.base import Attempt, Stopped
from synth.origin import Origin
from synth.preconditioning import EDM, Denoiser, DenoisingLoss, draw_views
from synth.records import NoisedViews, Records
from synth.settings import TrainSettings, WarmupSettings
from synth.training import PRIVATE, WARMUP, Trainer, Training
from synth.unet import UNet, UNetConfig
from tests.builders import images_of

KEY = bytes(range(32))
N, SIZE, CLASSES, T = 24, 4, 2, 7
Q, SIGMA, C = 0.3, 0.8, 0.5
QUERY = WarmupSettings(noise_multiplier=1.0, clip_norm=2.0, steps=3, batch=4, learning_rate=0.01)


class Network(nn.Module):
    """F(x; c_noise, y) of two convolutions, told the noise level and the label."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(1, 6, 3, padding=1)
        self.labels = nn.Embedding(CLASSES + 1, 6)
        self.level = nn.Linear(1, 6)
        self.outer = nn.Conv2d(6, 1, 3, padding=1)
        # Not torch's own generator: workers that are threads would draw from it in turns.
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.3, 0.3, generator=generator)

    def forward(self, x, c_noise, label):
        told = self.labels(label) + self.level(c_noise[:, None])
        return self.outer(torch.nn.functional.silu(self.inner(x) + told[:, :, None, None]))


PARAMETERS = len(list(Network().parameters()))
ALONE = SingleProcess()


def make_records(size=SIZE, workers=ALONE):
    """Two classes: bright on the left, bright on the right; every worker loads another order."""
    generator = np.random.default_rng(1)
    images = generator.integers(0, 40, (N, size, size, 1), dtype=np.uint8)
    labels = np.arange(N) % CLASSES
    images[labels == 0, :, : size // 2] += 200
    images[labels == 1, :, size // 2 :] += 200
    order = np.random.default_rng(workers.rank).permutation(N)
    loaded = [LabelledRecords(images[part], labels[part]) for part in np.split(order, [5])]
    return Records.of(own(loaded, KEY, workers.rank, workers.size, N), torch.device("cpu"))


def settings(**changes):
    values = {
        "views": 2,
        "learning_rate": 0.01,
        "ema": 0.6,
        "charge_block": 3,
        "checkpoint_every": 1,
        "micro_batch": 4,
    } | changes
    own = {name: values.pop(name) for name in list(values) if name in TrainSettings.model_fields}
    return Training(
        **{
            "dpsgd": DPSGD(N, Q, SIGMA, C),
            "steps": T,
            "classes": CLASSES,
            "label_dropout": 0.2,
            "micro_batch": own["micro_batch"],
        }
        | values,
        settings=TrainSettings(batch=1, **{"steps": T} | own),
    )


class Meter:
    """A reservation in memory."""

    def __init__(self, steps=T, query=0, trace=None, error=None, refused_call=None):
        self.left = {PRIVATE: steps, WARMUP: query}
        self.charged = {PRIVATE: 0, WARMUP: 0}
        self._trace = trace if trace is not None else Trace()
        self._error, self._refused_call, self._calls = error, refused_call, 0

    def remaining(self, component):
        return self.left[component]

    def charge(self, component, steps):
        self._calls += 1
        if self._calls == self._refused_call:
            self._trace.events.append(("refused", None))
            raise self._error
        time.sleep(0.01)  # while the ledger writes, a worker that does not wait would run ahead
        assert 0 < steps <= self.left[component]
        self.left[component] -= steps
        self.charged[component] += steps
        self._trace.events.append((component, steps))
        return f"head {self._calls}"


@dataclass
class Trace:
    """What was charged and drawn, in order."""

    events: list = field(default_factory=list)

    def of(self, kind):
        return [value for name, value in self.events if name == kind]


@pytest.fixture
def trace(monkeypatch):
    """Notes every mask and every noise tensor before it is drawn."""
    trace = Trace()
    mask, gaussian = PoissonSampler.mask, SecureGaussian.gaussian

    def traced_mask(self, step, record_ids):
        trace.events.append(("mask", (self.attempt, step)))
        drawn = mask(self, step, record_ids)
        trace.events.append(("chosen", drawn))
        return drawn

    def traced_gaussian(self, shape, std):
        trace.events.append(("noise", shape))
        drawn = gaussian(self, shape, std)
        trace.events.append(("drawn", drawn))
        return drawn

    monkeypatch.setattr(PoissonSampler, "mask", traced_mask)
    monkeypatch.setattr(SecureGaussian, "gaussian", traced_gaussian)
    return trace


def ignore(phase, done, total):
    pass


def go_on():
    return False


def trainer(
    folder, meter, attempt=1, seed=None, collective=None, on_progress=ignore, stopping=go_on,
    origin=None, **changes,
):  # fmt: skip
    return Trainer(
        settings(**changes),
        Denoiser(Network(), EDM()),
        make_records(workers=collective or ALONE),
        Attempt(attempt, KEY, seed, origin),
        meter,
        folder,
        collective or ALONE,
        on_progress,
        stopping,
    )


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def require_charged(trace, workers=1):
    """Assert that at no event more had been drawn than was charged before it."""
    charged = masks = noises = queries = 0
    for kind, value in trace.events:
        charged += value if kind == PRIVATE else 0
        queries += value if kind == WARMUP else 0
        masks += kind == "mask"
        noises += kind == "noise"
        assert masks <= charged * workers
        assert noises <= charged * PARAMETERS + queries
    return masks, noises


# The checks.


def check_every_draw_is_charged_before(trace, folder, run_workers):
    for workers in (1, 2):
        trace.events.clear()
        meter = Meter(query=1, trace=trace)
        path = folder / str(workers)
        run_workers(
            workers,
            lambda them, m=meter, p=path: trainer(p, m, collective=them, warmup=QUERY).run(),
        )
        masks, noises = require_charged(trace, workers)
        assert masks == T * workers
        assert noises == T * PARAMETERS + 1
        assert trace.of(PRIVATE) == [3, 3, 1]
        assert trace.of(WARMUP) == [1]


def check_nothing_is_drawn_after_a_refusal(trace, folder, run_workers):
    for call in (1, 2, 3):
        for error in (BudgetRefused("no"), LedgerUnavailable("gone")):
            trace.events.clear()
            meter = Meter(query=1, trace=trace, error=error, refused_call=call)
            path = folder / f"{call}-{type(error).__name__}"
            with pytest.raises(type(error)):
                trainer(path, meter, warmup=QUERY).run()
            kinds = [kind for kind, _ in trace.events]
            assert kinds[-1] == "refused"
            require_charged(trace)
            found = newest(path).checkpoint
            assert (found.step if found else 0) <= meter.charged[PRIVATE]


class Crash(Exception):
    pass


def check_crashes_never_run_what_is_not_charged(trace, folder, run_workers):
    for seed in range(8):
        trace.events.clear()
        dice = random.Random(seed)
        meter = Meter(steps=12, query=1, trace=trace)
        block, every = dice.randint(1, 5), dice.randint(1, 4)
        options = {"steps": 12, "charge_block": block, "checkpoint_every": every, "warmup": QUERY}

        def crash(phase, done, total, dice=dice):
            if dice.random() < 0.2:
                raise Crash

        for attempt in range(1, 40):
            try:
                trainer(folder / str(seed), meter, attempt, on_progress=crash, **options).run()
                break
            except Crash:
                require_charged(trace)
        assert attempt > 1
        masks, _ = require_charged(trace)
        assert meter.charged == {PRIVATE: 12, WARMUP: 1}
        assert masks <= 12
        drawn = trace.of("mask")
        assert len(set(drawn)) == len(drawn)
        found = newest(folder / str(seed)).checkpoint
        assert found is None or found.step <= masks


def check_attempts_draw_apart(trace, folder, run_workers):
    """Even under one seed, a second attempt has other masks and other noise, and in earnest too."""
    for seed in (None, 9):
        drawn = []
        for attempt in (1, 2):
            trace.events.clear()
            trainer(folder / f"{seed}-{attempt}", Meter(trace=trace), attempt, seed).run()
            drawn.append((np.stack(trace.of("chosen")).ravel(), torch.cat(flat(trace.of("drawn")))))
        (masks, noise), (other_masks, other_noise) = drawn
        assert abs(np.corrcoef(masks, other_masks)[0, 1]) < 6 / math.sqrt(masks.size)
        among = torch.corrcoef(torch.stack([noise, other_noise]))[0, 1]
        assert abs(among) < 6 / math.sqrt(len(noise))
    trace.events.clear()
    for path in ("one", "two"):
        trainer(folder / path, Meter(trace=trace)).run()
    noise = torch.cat(flat(trace.of("drawn")))
    assert len(noise.unique()) == len(noise)


def check_a_stop_forfeits_nothing(trace, folder, run_workers):
    """All that was charged is drawn and kept, and what was not can be drawn later."""
    for workers, at in itertools.product((1, 2), (3, 0, 1, 5)):
        trace.events.clear()
        meter, path = Meter(query=1, trace=trace), folder / f"{workers}-{at}"
        asked = threading.Event()
        if at == 0:
            asked.set()

        def work(collective, at=at, meter=meter, path=path, asked=asked):
            def reach(phase, done, total):
                if collective.rank == 0 and phase == PRIVATE and done == at:
                    asked.set()

            stop = asked.is_set if collective.rank == 0 else go_on
            part = trainer(path, meter, 1, None, collective, reach, stop, warmup=QUERY)
            with pytest.raises(Stopped):
                part.run()

        run_workers(workers, work)
        masks, _ = require_charged(trace, workers)
        stands = math.ceil(at / 3) * 3
        assert masks == meter.charged[PRIVATE] * workers == stands * workers
        assert newest(path).checkpoint.step == stands
        trainer(path, meter, attempt=2, warmup=QUERY).run()
        assert newest(path).checkpoint.step == T
        assert meter.left == {PRIVATE: 0, WARMUP: 0}


def flat(tensors):
    return [tensor.reshape(-1) for tensor in tensors]


def naive_run(seed=4, steps=T):
    """Algorithm 4 in one place: masks, views, clipping, noise, Adam, moving average."""
    records, denoiser = make_records(), Denoiser(Network(), EDM())
    noise, ids = Attempt(1, KEY, seed).noise(), records.ids
    adam = torch.optim.Adam(denoiser.parameters())
    average = {name: p.detach().clone() for name, p in denoiser.named_parameters()}
    for step in range(steps):
        mask = PoissonSampler(KEY, 1, Q).mask(step, ids)
        views = NoisedViews(EDM(), 2, 0.2, CLASSES, KEY, 1).for_step(step, records)
        sums = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in average.items()}
        for i in np.flatnonzero(mask):
            record = [part[0] for part in views(np.array([i]))]
            denoiser.zero_grad()
            DenoisingLoss(EDM())(denoiser, *record).backward()
            own = {name: p.grad.double() for name, p in denoiser.named_parameters()}
            norm = math.sqrt(sum(float(g.square().sum()) for g in own.values()))
            for name, g in own.items():
                sums[name] += g * min(1, C / norm)
        for name, p in denoiser.named_parameters():
            noised = sums[name] + noise.gaussian(tuple(p.shape), SIGMA * C)
            p.grad = (noised / (Q * N)).float()
        adam.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / steps)) / 2
        adam.step()
        for name, p in denoiser.named_parameters():
            average[name] = 0.6 * average[name] + 0.4 * p.detach()
    return average


def check_equals_a_naive_run(trace, folder, run_workers):
    """Over one worker and over three, without a difference but rounding."""
    expected = naive_run()
    for workers in (1, 3):

        def work(collective, workers=workers):
            return trainer(folder / str(workers), Meter(), seed=4, collective=collective).run()

        for found in run_workers(workers, work):
            assert list(found) == list(expected)
            for name, parameter in found.items():
                torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=1e-5)


CHECKS = (
    check_every_draw_is_charged_before,
    check_nothing_is_drawn_after_a_refusal,
    check_crashes_never_run_what_is_not_charged,
    check_attempts_draw_apart,
    check_a_stop_forfeits_nothing,
    check_equals_a_naive_run,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_ships(check, trace, tmp_path, run_workers):
    check(trace, tmp_path, run_workers)


# The planted bugs.


def charged_after_the_block(patch):
    """Takes the block's steps on credit and pays when the next one is asked for."""
    owed = []

    def wrong(self):
        if owed and self.collective.rank == 0:
            self.meter.charge(PRIVATE, owed.pop())
        block = min(self.meter.remaining(PRIVATE), self.training.settings.charge_block)
        if block and self.collective.rank == 0:
            owed.append(block)
        return self.collective.broadcast_from_rank0(block)

    patch.setattr(Trainer, "_charge_block", wrong)


def one_step_more_than_charged(patch):
    shipped = Trainer._charge_block
    patch.setattr(Trainer, "_charge_block", lambda self: (n := shipped(self)) and n + 1)


def others_do_not_wait_for_the_charge(patch):
    def wrong(self):
        block = min(self.meter.remaining(PRIVATE), self.training.settings.charge_block)
        block = self.collective.broadcast_from_rank0(block)
        if block and self.collective.rank == 0:
            if self.collective.size > 1:
                # Workers of a test take turns; who waits for a ledger has none.
                self.collective._turn.release()
                time.sleep(0.05)
                self.collective._turn.acquire()
            self.meter.charge(PRIVATE, block)
        return block

    patch.setattr(Trainer, "_charge_block", wrong)


def query_not_charged(patch):
    shipped = Trainer._warm_up

    def wrong(self):
        meter, self.meter = self.meter, Meter(query=1)
        shipped(self)
        self.meter = meter

    patch.setattr(Trainer, "_warm_up", wrong)


def refusal_passed_over(patch):
    shipped = Trainer._charge_block

    def wrong(self):
        try:
            return shipped(self)
        except UmbraError:
            return 1

    patch.setattr(Trainer, "_charge_block", wrong)


def attempts_not_charged(patch):
    """A resumed run believes that what is not in the checkpoint was never taken."""
    shipped = Trainer._charge_block

    def wrong(self):
        if self.attempt.number == 1:
            return shipped(self)
        return self.training.steps - self._step

    patch.setattr(Trainer, "_charge_block", wrong)


def same_masks_every_attempt(patch):
    mask = PoissonSampler.mask

    def wrong(self, step, record_ids):
        return mask(PoissonSampler(self.key, 0, self.sampling_probability), step, record_ids)

    patch.setattr(PoissonSampler, "mask", wrong)


def same_noise_every_attempt(patch):
    patch.setattr(Attempt, "noise", lambda self: SecureGaussian.seeded(self.seed or 0))


def gradient_accumulated_twice(patch):
    shipped, left = PrivateGradient.__call__, {}

    def wrong(self, *step):
        for name, gradient in shipped(self, *step).items():
            left[name] = left.get(name, 0) + gradient
        return dict(left)

    patch.setattr(PrivateGradient, "__call__", wrong)


def small_batches_skipped(patch):
    """As an empty batch is skipped elsewhere; with this q and N the smallest has five records."""
    shipped = Trainer._descend

    def wrong(self, gradient):
        if PoissonSampler(KEY, 1, Q).mask(self._step, make_records().ids).sum() > 5:
            shipped(self, gradient)
        else:
            self._step += 1

    patch.setattr(Trainer, "_descend", wrong)


def settled_while_a_worker_draws(patch):
    """Gives the rest of a block back once a stop is asked for, though the block goes on."""
    shipped = Trainer._descend

    def wrong(self, gradient):
        shipped(self, gradient)
        rest = self.meter.charged[PRIVATE] - self._step
        if self.stopping() and rest:
            self.meter.left[PRIVATE] += rest
            self.meter.charged[PRIVATE] -= rest
            self.meter._trace.events.append((PRIVATE, -rest))

    patch.setattr(Trainer, "_descend", wrong)


def stop_after_a_charge(patch):
    """Notices only behind the next charge, whose block is then lost."""
    shipped = Trainer._charge_block

    def wrong(self):
        stopping, self.stopping = self.stopping, go_on
        block, self.stopping = shipped(self), stopping
        if self.collective.broadcast_from_rank0(int(stopping())):
            self._save()
            raise Stopped
        return block

    patch.setattr(Trainer, "_charge_block", wrong)


def stopped_as_if_finished(patch):
    shipped = Trainer._charge_block

    def wrong(self):
        try:
            return shipped(self)
        except Stopped:
            return 0

    patch.setattr(Trainer, "_charge_block", wrong)


PLANTED = [
    (charged_after_the_block, check_every_draw_is_charged_before),
    (one_step_more_than_charged, check_every_draw_is_charged_before),
    (others_do_not_wait_for_the_charge, check_every_draw_is_charged_before),
    (query_not_charged, check_every_draw_is_charged_before),
    (refusal_passed_over, check_nothing_is_drawn_after_a_refusal),
    (attempts_not_charged, check_crashes_never_run_what_is_not_charged),
    (same_masks_every_attempt, check_attempts_draw_apart),
    (same_noise_every_attempt, check_attempts_draw_apart),
    (settled_while_a_worker_draws, check_a_stop_forfeits_nothing),
    (stop_after_a_charge, check_a_stop_forfeits_nothing),
    (stopped_as_if_finished, check_a_stop_forfeits_nothing),
    (gradient_accumulated_twice, check_equals_a_naive_run),
    (small_batches_skipped, check_equals_a_naive_run),
]


@pytest.mark.parametrize(("plant", "check"), PLANTED, ids=lambda part: part.__name__)
def test_planted_bug_is_caught(monkeypatch, plant, check, trace, tmp_path, run_workers):
    plant(monkeypatch)
    # "Did not raise" is how a refusal that was passed over shows.
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(trace, tmp_path, run_workers)


class TestRun:
    def test_returns_the_moving_average(self, tmp_path):
        weights = []
        mine = trainer(
            tmp_path,
            Meter(),
            on_progress=lambda *_: weights.append(copy.deepcopy(mine.denoiser.state_dict())),
        )
        average = {name: p.detach().clone() for name, p in mine.denoiser.named_parameters()}
        found = mine.run()
        for step in weights:
            average = {name: 0.6 * average[name] + 0.4 * step[name] for name in average}
        for name, expected in average.items():
            torch.testing.assert_close(found[name], expected)
        assert not same(found, weights[-1])

    def test_a_used_up_reservation_takes_no_step(self, tmp_path, trace):
        with pytest.raises(UmbraError, match="submit a new run"):
            trainer(tmp_path, Meter(steps=0, trace=trace)).run()
        assert trace.events == []
        assert newest(tmp_path).checkpoint is None

    def test_a_finished_run_gives_its_weights_again(self, tmp_path, trace):
        meter = Meter(trace=trace)
        found = trainer(tmp_path, meter).run()
        trace.events.clear()
        assert same(trainer(tmp_path, meter, attempt=2).run(), found)
        assert trace.events == []

    def test_with_a_seed_is_reproducible_bit_for_bit(self, tmp_path):
        runs = [
            trainer(tmp_path / str(i), Meter(query=1), seed=3, warmup=QUERY).run() for i in "ab"
        ]
        assert same(*runs)

    def test_without_a_seed_is_not(self, tmp_path):
        runs = [trainer(tmp_path / str(i), Meter()).run() for i in "ab"]
        assert not same(*runs)

    def test_does_not_touch_torchs_own_generator(self, tmp_path):
        mine = trainer(tmp_path, Meter(query=1), warmup=QUERY)
        before = torch.get_rng_state()
        mine.run()
        assert torch.equal(torch.get_rng_state(), before)

    def test_says_steps_and_nothing_else(self, tmp_path, capfd):
        told = []
        trainer(
            tmp_path, Meter(query=1), warmup=QUERY, on_progress=lambda *what: told.append(what)
        ).run()
        queried = [(WARMUP, done, 3) for done in (1, 2, 3)]
        assert told == queried + [(PRIVATE, done, T) for done in range(1, T + 1)]
        assert capfd.readouterr() == ("", "")

    def test_a_record_that_is_not_finite_does_not_stop_it(self, tmp_path):
        class Tainted(Records):
            def take(self, positions):
                images, labels = super().take(positions)
                for position, value in ((2, math.nan), (7, math.inf)):
                    images[positions == position] = value
                    met.add(value) if position in positions else None
                return images, labels

        met = set()
        mine = trainer(tmp_path, Meter(query=1), warmup=QUERY)
        mine.records = Tainted(**vars(mine.records))
        assert all(bool(p.isfinite().all()) for p in mine.run().values())
        assert len(met) == 2

    def test_learns(self, tmp_path):
        """With weak noise the denoising loss on fixed views falls well below the initial one."""
        steps, records = 40, make_records()
        images = images_of(records)
        sigma, noise = draw_views(EDM(), images, 8, torch.Generator().manual_seed(0))

        def loss(denoiser):
            with torch.no_grad():
                return sum(
                    float(DenoisingLoss(EDM())(denoiser, image, label, s, n))
                    for image, label, s, n in zip(images, records.labels, sigma, noise, strict=True)
                )

        mine = trainer(
            tmp_path,
            Meter(steps),
            dpsgd=DPSGD(N, 0.5, 0.05, 1.0),
            steps=steps,
            charge_block=steps,
            learning_rate=0.05,
            ema=0.9,
        )
        trained = Denoiser(Network(), EDM())
        before = loss(trained)
        trained.load_state_dict(mine.run())
        assert loss(trained) < 0.7 * before

    def test_trains_the_network_that_ships(self, tmp_path):
        network = UNet(
            UNetConfig(
                size=8,
                channels=1,
                base=8,
                multipliers=(1,),
                blocks=1,
                attention=(),
                classes=CLASSES,
            )
        )
        denoiser = Denoiser(network, EDM())
        before = {name: p.detach().clone() for name, p in denoiser.named_parameters()}
        found = Trainer(
            settings(steps=2), denoiser, make_records(8), Attempt(1, KEY), Meter(2), tmp_path
        ).run()
        # Every parameter gets noise, whether or not its gradient is zero at the start.
        assert all(not torch.equal(found[name], p) for name, p in before.items())


class TestFrozenBackbone:
    FROZEN = ("network.inner.weight", "network.inner.bias")

    def trained(self, folder, meter, attempt=1, **changes):
        denoiser = Denoiser(Network(), EDM())
        denoiser.network.inner.requires_grad_(False)
        records, begun = make_records(), Attempt(attempt, KEY)
        return Trainer(settings(**changes), denoiser, records, begun, meter, folder).run()

    def test_only_the_other_parameters_are_trained_averaged_and_kept(self, tmp_path):
        before = Denoiser(Network(), EDM()).state_dict()
        found = self.trained(tmp_path, Meter(query=1), warmup=QUERY)
        assert list(found) == list(before)
        unchanged = {name for name in found if torch.equal(found[name], before[name])}
        assert unchanged == set(self.FROZEN)
        checkpoint = newest(tmp_path).checkpoint
        assert set(checkpoint.model) == set(checkpoint.ema) == set(before) - set(self.FROZEN)
        assert len(checkpoint.optimizer["state"]) == PARAMETERS - len(self.FROZEN)

    def test_a_resumed_run_goes_on_with_the_same_backbone(self, tmp_path):
        self.trained(tmp_path, Meter(steps=2))
        found = self.trained(tmp_path, Meter(steps=2), attempt=2)
        before = Denoiser(Network(), EDM()).state_dict()
        assert newest(tmp_path).checkpoint.step == 4
        assert all(torch.equal(found[name], before[name]) for name in self.FROZEN)

    def test_gets_no_noise(self, tmp_path, trace):
        self.trained(tmp_path, Meter(steps=1))
        assert len(trace.of("drawn")) == PARAMETERS - len(self.FROZEN)


class TestWarmUp:
    def test_comes_first_and_is_charged_once(self, tmp_path, trace):
        meter = Meter(query=1, trace=trace)

        def crash(phase, done, total):
            if phase == PRIVATE:
                raise Crash

        with pytest.raises(Crash):
            trainer(tmp_path, meter, warmup=QUERY, on_progress=crash).run()
        assert [e for e in trace.events if e[0] in (WARMUP, PRIVATE)] == [(WARMUP, 1), (PRIVATE, 3)]
        found = newest(tmp_path).checkpoint
        assert (found.step, found.phase, found.ledger_head) == (0, WARMUP, "head 1")
        trainer(tmp_path, meter, attempt=2, warmup=QUERY).run()
        assert meter.charged == {WARMUP: 1, PRIVATE: T}

    def test_changes_where_training_starts(self, tmp_path):
        seen = {}

        def crash(phase, done, total):
            if phase == PRIVATE:
                raise Crash

        for name, query in (("with", 1), ("without", 0)):
            with pytest.raises(Crash):
                trainer(
                    tmp_path / name, Meter(query=query), seed=1, warmup=QUERY, on_progress=crash
                ).run()
            seen[name] = newest(tmp_path / name).checkpoint
        assert seen["without"] is None
        warmed = seen["with"]
        assert not same(warmed.model, Denoiser(Network(), EDM()).state_dict())
        assert same(warmed.model, warmed.ema)

    def test_goes_on_without_a_query_that_was_forfeited(self, tmp_path, trace):
        """A crash between the charge and the answer: the query is spent, training is not."""
        meter = Meter(query=1, trace=trace)

        def crash(phase, done, total):
            raise Crash

        with pytest.raises(Crash):
            trainer(tmp_path, meter, warmup=QUERY, on_progress=crash).run()
        assert meter.charged == {WARMUP: 1, PRIVATE: 0}
        trace.events.clear()
        trainer(tmp_path, meter, attempt=2, warmup=QUERY).run()
        assert trace.of(WARMUP) == []
        assert len(trace.of("noise")) == T * PARAMETERS
        assert newest(tmp_path).checkpoint.step == T

    def test_is_the_same_on_every_worker(self, tmp_path, run_workers):
        def work(collective):
            return trainer(
                tmp_path / str(collective.size),
                Meter(query=1),
                seed=2,
                collective=collective,
                warmup=QUERY,
            ).run()

        one, *others = run_workers(1, work) + run_workers(2, work)
        for other in others:
            for name, parameter in one.items():
                torch.testing.assert_close(other[name], parameter, rtol=1e-4, atol=1e-5)


class TestStop:
    def test_keeps_every_step_from_then_on_lest_it_be_killed_within_its_block(self, tmp_path):
        kept = []

        def reach(phase, done, total):
            found = newest(tmp_path).checkpoint
            kept.append(found.step if found else 0)

        stopping = lambda: len(kept) >= 1  # noqa: E731
        part = trainer(tmp_path, Meter(), on_progress=reach, stopping=stopping, checkpoint_every=50)
        with pytest.raises(Stopped, match="after step 3 of 7"):
            part.run()
        assert kept == [0, 1, 2]

    def test_ends_a_warm_up_and_goes_on_with_the_rest_of_it_for_free(self, tmp_path, trace):
        done, meter = [], Meter(query=1, trace=trace)
        part = trainer(
            tmp_path, meter, on_progress=lambda *of: done.append(of),
            stopping=lambda: len(done) >= 2, warmup=QUERY,
        )  # fmt: skip
        with pytest.raises(Stopped):
            part.run()
        assert done == [(WARMUP, 1, QUERY.steps), (WARMUP, 2, QUERY.steps)]
        found = newest(tmp_path).checkpoint
        assert (found.step, found.attempt, found.ledger_head) == (0, 1, "head 1")
        # Before a step is taken, and after the last: the checkpoint names who paid for it.
        with pytest.raises(Stopped):
            trainer(tmp_path, meter, attempt=2, stopping=lambda: True, warmup=QUERY).run()
        trace.events.clear()
        asked, reach = [], lambda *of: done.append(of)
        stopping = lambda: asked.append(0) or len(asked) > 1  # noqa: E731
        with pytest.raises(Stopped):
            trainer(
                tmp_path, meter, attempt=3, on_progress=reach, stopping=stopping, warmup=QUERY
            ).run()
        assert done[2:] == [(WARMUP, 3, QUERY.steps)]
        found = newest(tmp_path).checkpoint
        assert (found.step, found.attempt, found.ledger_head) == (0, 1, "head 1")
        assert trace.of("noise") == trace.of(WARMUP) == []
        trainer(tmp_path, meter, attempt=4, on_progress=reach, warmup=QUERY).run()
        assert [phase for phase, *_ in done].count(WARMUP) == QUERY.steps
        assert meter.charged == {WARMUP: 1, PRIVATE: T}

    def test_is_not_heeded_when_nothing_is_left_to_charge(self, tmp_path):
        meter = Meter()
        trainer(tmp_path, meter).run()
        trainer(tmp_path, meter, attempt=2, stopping=lambda: True).run()


class TestResume:
    def crashed(self, folder, meter, at=4, **options):
        def crash(phase, done, total):
            if done == at:
                raise Crash

        with pytest.raises(Crash):
            trainer(folder, meter, on_progress=crash, **options).run()

    def test_goes_on_from_the_checkpoint_with_what_is_left(self, tmp_path, trace):
        meter, done = Meter(trace=trace), []
        self.crashed(tmp_path, meter)  # in the second block of three
        found = newest(tmp_path).checkpoint
        assert (found.step, meter.charged[PRIVATE]) == (3, 6)
        trace.events.clear()
        resumed = trainer(
            tmp_path, meter, attempt=2, on_progress=lambda phase, step, total: done.append(step)
        )
        resumed.run()
        assert done == [4]
        assert trace.of("mask") == [(2, 3)]
        assert meter.charged[PRIVATE] == T

    def test_checkpoints_are_sealed_and_those_of_another_run_refused(self, tmp_path):
        mine, other = (Origin(run, "r-1", "ab" * 32, False, KEY) for run in ("run-1", "run-2"))
        meter = Meter()
        self.crashed(tmp_path, meter, origin=other)
        found = newest(tmp_path).checkpoint
        other.require(found.mark, found.sha256, "the checkpoint")
        before = dict(meter.charged)
        with pytest.raises(IntegrityBroken, match="is not of run run-1"):
            trainer(tmp_path, meter, attempt=2, origin=mine).run()
        assert meter.charged == before
        trainer(tmp_path, meter, attempt=2, origin=other).run()
        assert meter.charged[PRIVATE] == T

    def test_one_without_a_mark_is_refused_where_the_run_seals(self, tmp_path):
        """As put there between two starts of the workers, of which the driver sees nothing."""
        mine, meter = Origin("run-1", "r-1", "ab" * 32, False, KEY), Meter()
        self.crashed(tmp_path, meter)
        before = dict(meter.charged)
        with pytest.raises(IntegrityBroken, match="is not of run run-1"):
            trainer(tmp_path, meter, attempt=2, origin=mine).run()
        assert meter.charged == before
        # One begun by a version that sealed nothing goes on.
        trainer(tmp_path, meter, attempt=2, origin=replace(mine, sealed=False)).run()
        assert meter.charged[PRIVATE] == T

    @pytest.mark.parametrize(("every", "kept"), [(1, [6, 7]), (4, [6, 7]), (100, [7])])
    def test_checkpoints_are_written_when_due_and_at_the_end(self, tmp_path, every, kept):
        trainer(tmp_path, Meter(), checkpoint_every=every).run()
        assert sorted(tmp_path.iterdir()) == [tmp_path / f"step-{step:06d}" for step in kept]

    def test_takes_up_weights_average_and_moments(self, tmp_path):
        mine = trainer(tmp_path, Meter(steps=3))
        average = mine.run()
        resumed = trainer(tmp_path, Meter(steps=0), attempt=2)
        assert same(resumed.run(), average)
        assert same(resumed.denoiser.state_dict(), mine.denoiser.state_dict())
        moments, expected = (t._optimizer.state_dict()["state"] for t in (resumed, mine))
        assert all(same(moments[p], expected[p]) for p in expected)

    def test_a_checkpoint_holds_nothing_to_draw_again_from(self, tmp_path):
        seed = 0x5EED5EED5EED
        trainer(tmp_path, Meter(query=1), seed=seed, warmup=QUERY).run()
        folders = sorted(tmp_path.glob("step-*"))
        assert len(folders) == 2
        secrets = [KEY, KEY.hex().encode(), str(seed).encode(), seed.to_bytes(6, "big")]
        secrets.append(seed.to_bytes(6, "little"))
        for path in (path for folder in folders for path in folder.iterdir()):
            data = path.read_bytes()
            assert not any(secret in data for secret in secrets), path.name
        found = newest(tmp_path).checkpoint
        names = [name for name, _ in Denoiser(Network(), EDM()).named_parameters()]
        assert list(found.model) == list(found.ema) == names
        assert set(found.optimizer["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
        assert (found.attempt, found.phase) == (1, PRIVATE)

    def test_the_same_attempt_never_runs_twice(self, tmp_path, trace):
        meter = Meter(trace=trace)
        self.crashed(tmp_path, meter)
        trace.events.clear()
        for number in (0, 1):
            with pytest.raises(InvalidRequest, match="new attempt"):
                trainer(tmp_path, meter, attempt=number).run()
        assert trace.events == []

    def test_a_trainer_does_not_go_back_over_its_steps(self, tmp_path, trace):
        """A second `run` after a failure would restore an older step and draw its mask again."""
        calls = []

        def crash(phase, done, total):
            calls.append(done)
            if calls == [1, 2, 3, 4]:
                raise Crash

        mine = trainer(tmp_path, Meter(trace=trace), on_progress=crash)
        with pytest.raises(Crash):
            mine.run()
        with pytest.raises(InvalidRequest):
            mine.run()
        drawn = trace.of("mask")
        assert len(set(drawn)) == len(drawn)

    def test_workers_that_see_other_checkpoints_are_stopped(self, tmp_path, run_workers):
        trainer(tmp_path / "0", Meter(steps=3)).run()
        meter = Meter()

        def work(collective):
            return trainer(
                tmp_path / str(collective.rank), meter, attempt=2, collective=collective
            ).run()

        with pytest.raises(UmbraError, match="storage"):
            run_workers(2, work)
        assert meter.charged[PRIVATE] <= 3  # rank 0 may have paid before it heard


class TestSettings:
    def test_records_that_are_not_those_stated_are_refused(self, tmp_path):
        with pytest.raises(InvalidRequest, match=f"{N + 1} records"):
            trainer(tmp_path, Meter(), dpsgd=DPSGD(N + 1, Q, SIGMA, C))

    @pytest.mark.parametrize(
        "name", ["steps", "views", "classes", "charge_block", "checkpoint_every", "micro_batch"]
    )
    @pytest.mark.parametrize("value", [0, -1, 2.5, True])
    def test_counts_are_at_least_one(self, name, value):
        with pytest.raises((InvalidRequest, ValidationError), match=name):
            settings(**{name: value})

    @pytest.mark.parametrize(
        "change",
        [
            {"learning_rate": 0.0},
            {"learning_rate": math.nan},
            {"ema": 1.0},
        ],
    )
    def test_numbers_that_make_no_sense(self, change):
        with pytest.raises(ValidationError):
            settings(**change)

    @pytest.mark.parametrize("probability", [-0.1, 1.5, math.nan])
    def test_a_label_dropout_outside_0_to_1_is_refused_before_any_charge(self, probability):
        with pytest.raises(InvalidRequest, match="label_dropout"):
            settings(label_dropout=probability)
