"""The whole fit: charges before draws, sensitivity of every release, workers, crashes, odd data."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from privacy import moments as queries
from privacy.accounting import accountant
from privacy.errors import BudgetRefused, IntegrityBroken, InvalidRequest, UmbraError
from privacy.ledger.records import Component
from privacy.mechanisms import Gaussian
from synth.checkpoint import newest
from synth.data.shards import to_uint8
from synth.methods import moments as parts
from synth.methods.base import Attempt, PublicFacts, Stopped, WorkerResources
from synth.methods.moments import Moments, Sizes
from synth.moments import candidates, fit, releases
from synth.moments.teacher import FeatureSpace
from synth.origin import Origin
from tests import builders
from tests.builders import images_of, part_of

N, SIZE, CLASSES = 240, 8, 3
FACTS = PublicFacts(SIZE, 1, CLASSES)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Fewer synthetic images than the product makes."""
    monkeypatch.setattr(fit, "_POOL", (150, 150))
    monkeypatch.setattr(fit, "_TONE_IMAGES", 60)
    monkeypatch.setattr(candidates, "_EPOCHS", 1)


def records_of(n=N, channels=1, classes=CLASSES, seed=0):
    """Bright squares in a corner that depends on the class."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.rand(n, channels, SIZE, SIZE, generator=g) * 0.6 - 1
    for i, y in enumerate(labels.tolist()):
        row, column = 4 * (y % 2), 4 * (y // 2 % 2)
        images[i, :, row : row + 4, column : column + 4] += 1.2
    return builders.records_of(to_uint8(images), labels.numpy())


class Meter:
    """Charges like the ledger, writes down the order, and can die at a charge."""

    def __init__(self, components):
        self.left = {part.name: part.mechanism.steps for part in components}
        self.charged = []
        self.dies_after = math.inf

    def charge(self, component, steps):
        if self.left[component] < steps:
            raise BudgetRefused("no steps left")
        self.left[component] -= steps
        self.charged.append((component, steps))
        if len(self.charged) > self.dies_after:
            raise KeyboardInterrupt
        return "ab12"

    def remaining(self, component):
        return self.left[component]


def method_of(facts=FACTS, n=N):
    return Moments(n, facts, 1.0, WorkerResources("cpu"))


def fitted(
    folder,
    records=None,
    *,
    epsilon=50.0,
    meter=None,
    number=1,
    collective=None,
    seed=None,
    facts=FACTS,
    stopping=lambda: False,
    origin=None,
):
    records = records or records_of()
    if collective is not None:
        records = part_of(records, np.arange(collective.rank, len(records), collective.size))
    method = method_of(facts, records.total)
    components = method.components(epsilon, 1e-4, "rdp")
    key = bytes(range(32)) if seed is not None else os.urandom(32)
    attempt = Attempt(number, key, seed, origin)
    meter = meter or Meter(components)
    return method.fit(records, components, attempt, meter, folder, collective, stopping=stopping)


class TestComponents:
    @pytest.mark.parametrize(("epsilon", "sigma"), [(0.2, 17.91), (1, 4.045), (10, 0.5296)])
    def test_shares_compose_to_epsilon(self, epsilon, sigma):
        method = method_of(PublicFacts(28, 1, 10), 60_000)
        components = method.components(epsilon, 1e-5, "rdp")
        mechanisms = [part.mechanism for part in components]
        precision = sum(m.steps / m.noise_multiplier**2 for m in mechanisms)
        assert precision**-0.5 == pytest.approx(sigma, rel=3e-4)
        spent = accountant("rdp").epsilon(mechanisms, 1e-5)
        assert epsilon * (1 - 1e-4) <= spent <= epsilon

    def test_shares_compose_under_prv(self):
        mechanisms = [part.mechanism for part in method_of().components(2.0, 1e-4, "prv")]
        assert 2.0 * 0.99 <= accountant("prv").epsilon(mechanisms, 1e-4) <= 2.0

    @pytest.mark.parametrize("part", [parts.HISTOGRAM, parts.CHOICE, parts.TEACHER, parts.SUMS])
    def test_a_plan_without_a_part_would_overspend(self, part):
        """What is drawn has to be among what is accounted: each part changes ε."""
        components = method_of().components(3.0, 1e-4, "rdp")
        rest = [c.mechanism for c in components if c.name != part]
        assert accountant("rdp").epsilon(rest, 1e-4) < 3.0 * (1 - 5e-4)

    def test_one_component_a_class_needs_no_rounds(self):
        method = method_of(PublicFacts(28, 1, 10), 6000)
        components = method.components(0.5, 1e-5, "rdp")
        assert parts.LLOYD not in [part.name for part in components]
        assert method.sizes(components).components == 1
        sigma = {part.name: part.mechanism for part in components}
        share = {name: m.steps / m.noise_multiplier**2 for name, m in sigma.items()}
        assert share[parts.MIXTURE] / share[parts.SUMS] == pytest.approx(7.5)

    @pytest.mark.parametrize("size", [8, 12, 28, 32, 64])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("noise", [0.5, 5, 100])
    def test_sizes_stay_within_their_bounds(self, size, channels, noise):
        sizes = Sizes.of(20_000, PublicFacts(size, channels, 7), noise, noise)
        assert 1 <= sizes.kept <= size
        assert channels * sizes.kept**2 <= 2048 or sizes.kept == 8
        assert 1 <= sizes.components <= 100
        more = Sizes.of(200_000, PublicFacts(size, channels, 7), noise, noise)
        assert more.kept >= sizes.kept
        assert more.components >= sizes.components


class TestCharges:
    def test_every_draw_is_charged_before(self, tmp_path, monkeypatch):
        """Noise of the reserved multiplier, one draw for one charged step, in order."""
        drawn, honest = [], queries.Release.__call__
        components = method_of().components(50.0, 1e-4, "rdp")
        meter = Meter(components)

        def watched(release, own, sensitivity, sigma):
            drawn.append(sigma)
            charged = [
                part.mechanism.noise_multiplier
                for name, steps in meter.charged
                for part in components
                if part.name == name
                for _ in range(steps)
            ]
            assert charged[: len(drawn)] == drawn
            return honest(release, own, sensitivity, sigma)

        monkeypatch.setattr(queries.Release, "__call__", watched)
        fitted(tmp_path, meter=meter)
        assert not any(meter.left.values())
        assert len(drawn) == sum(part.mechanism.steps for part in components)

    def test_a_query_that_was_not_charged_is_not_drawn(self, tmp_path, monkeypatch):
        """Planted: the histogram without its share."""
        honest = releases.Releases.pay

        def free(releases, component, steps=1):
            return 1 if component == parts.HISTOGRAM else honest(releases, component, steps)

        monkeypatch.setattr(releases.Releases, "pay", free)
        with pytest.raises(UmbraError, match="not charged"):
            fitted(tmp_path)

    def test_the_ledgers_refusal_ends_it(self, tmp_path):
        components = method_of().components(50.0, 1e-4, "rdp")
        meter = Meter(components)
        meter.left[parts.SUMS] = 0
        with pytest.raises(UmbraError, match="lost in a crash"):
            fitted(tmp_path, meter=meter)
        assert meter.charged == []

    def test_another_number_of_records_is_refused(self, tmp_path):
        method = method_of(n=N + 1)
        components = method.components(50.0, 1e-4, "rdp")
        with pytest.raises(InvalidRequest, match="declare"):
            method.fit(records_of(), components, Attempt(1, bytes(32)), Meter(components), tmp_path)


class Tape:
    """Records the sums of every release and answers; or answers again as it was recorded.

    With the same answers all that is adaptive is the same, and what differs between two
    neighbouring sets is what a record contributes.
    """

    def __init__(self, monkeypatch):
        self.sums, self.answers, self.sensitivities = [], [], []
        self._replayed, honest = 0, queries.Release.__call__

        def call(release, own, sensitivity, sigma):
            self.sums.append(own.clone())
            if self._replayed < len(self.answers):
                self._replayed += 1
                return self.answers[self._replayed - 1].clone()
            answer = honest(release, own, sensitivity, sigma)
            self.answers.append(answer.clone())
            self.sensitivities.append(sensitivity)
            self._replayed += 1
            return answer

        monkeypatch.setattr(queries.Release, "__call__", call)

    def rewind(self):
        self._replayed = 0
        before, self.sums = self.sums, []
        return before


def loudest():
    """A record that goes as far as any: its own class's opposite, in extreme colours."""
    board = torch.ones(1, SIZE, SIZE)
    board[:, ::2, 1::2] = board[:, 1::2, ::2] = -1
    return board


def check_no_record_moves_a_release_further_than_its_sensitivity(folder, monkeypatch):
    records = records_of()
    records.values[5] = torch.from_numpy(to_uint8(loudest()[None]))[0]
    tape = Tape(monkeypatch)
    fitted(folder / "with", records, seed=3)
    before = tape.rewind()
    absent = part_of(records, np.delete(np.arange(N), 5))
    fitted(folder / "without", absent, seed=3)
    moved = [
        float((a - b).norm()) / S
        for a, b, S in zip(before, tape.sums, tape.sensitivities, strict=True)
    ]
    assert max(moved) <= 1 + 1e-9
    assert max(moved) > 0.9


def test_no_record_moves_a_release_further_than_its_sensitivity(tmp_path, monkeypatch):
    check_no_record_moves_a_release_further_than_its_sensitivity(tmp_path, monkeypatch)


def whitened_by_private_features(monkeypatch):
    seen, honest = [], fit.Fitting.__init__

    def init(self, *arguments):
        honest(self, *arguments)
        seen[:] = [images_of(self._records)]

    monkeypatch.setattr(fit.Fitting, "__init__", init)
    of = FeatureSpace.of.__func__
    monkeypatch.setattr(
        FeatureSpace,
        "of",
        classmethod(lambda cls, scattering, images: of(cls, scattering, seen[0])),
    )


def centred_by_the_records_own_mean(monkeypatch):
    honest = queries.scatter

    def scatter(chunks, dimension, **given):
        held = list(chunks)
        mean = torch.cat([x.nan_to_num() for x, _ in held]).mean(0)
        return honest([(x - 3 * mean, y) for x, y in held], dimension, **given)

    monkeypatch.setattr(queries, "scatter", scatter)


def means_over_true_counts(monkeypatch):
    honest = queries.block_sums

    def block_sums(chunks, blocks, dimension, **given):
        held = [(x, y) for x, y in chunks]
        n = sum(float(x.isfinite().all(1).sum()) for x, _ in held)
        return honest([(x * (n / N) ** 200, y) for x, y in held], blocks, dimension, **given)

    monkeypatch.setattr(queries, "block_sums", block_sums)


def one_candidate_more(monkeypatch):
    honest = queries.right_answers

    def right_answers(chunks, candidates, **given):
        return honest((torch.cat([c, c[:, :1]], 1) for c in chunks), candidates, **given)

    monkeypatch.setattr(queries, "right_answers", right_answers)


@pytest.mark.parametrize(
    "bug",
    [
        whitened_by_private_features,
        centred_by_the_records_own_mean,
        means_over_true_counts,
        one_candidate_more,
    ],
)
def test_planted_bug_is_caught(bug, tmp_path, monkeypatch):
    bug(monkeypatch)
    with pytest.raises((AssertionError, InvalidRequest)):
        check_no_record_moves_a_release_further_than_its_sensitivity(tmp_path, monkeypatch)


def test_the_number_of_workers_does_not_matter(tmp_path, monkeypatch, run_workers):
    """Sums of three workers, added, are those of one, where all answers are the same."""
    tape = Tape(monkeypatch)
    alone = fitted(tmp_path / "one", seed=3)
    expected = tape.rewind()
    sums = [[], [], []]

    def call(release, own, sensitivity, sigma):
        mine = sums[release.collective.rank]
        mine.append(own.clone())
        release.collective.sum({"sums": own})
        return tape.answers[len(mine) - 1].clone()

    monkeypatch.setattr(queries.Release, "__call__", call)
    meter = Meter(method_of().components(50.0, 1e-4, "rdp"))

    def work(collective):
        return fitted(tmp_path / "three", seed=3, collective=collective, meter=meter)

    results = run_workers(3, work)
    assert len(sums[0]) == len(expected)
    for parts_of_sum, whole in zip(zip(*sums, strict=True), expected, strict=True):
        assert torch.allclose(sum(parts_of_sum), whole, atol=1e-6)
    for result in results:
        assert list(result) == list(alone)
        for name, value in alone.items():
            assert torch.allclose(result[name], value, atol=1e-5), name


class TestCrashes:
    # Of the 67 charges 60 are the teacher's, each of one step, and the choice is the last.
    @pytest.mark.parametrize("dies_after", [*range(10), 40, 65, 66])
    def test_goes_on_after_a_crash_at_any_charge(self, tmp_path, dies_after):
        meter = Meter(method_of().components(50.0, 1e-4, "rdp"))
        meter.dies_after = dies_after
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path, meter=meter)
        meter.dies_after = math.inf
        lost = meter.charged[-1][0]
        if lost in (parts.SUMS, parts.SCATTER, parts.MIXTURE):
            with pytest.raises(UmbraError, match="lost in a crash"):
                fitted(tmp_path, meter=meter, number=2)
            return
        weights = fitted(tmp_path, meter=meter, number=2)
        assert not any(meter.left.values())
        assert (len(weights["network.tone"]) == 0) == (lost == parts.HISTOGRAM)
        if lost == parts.CHOICE:
            assert float(weights["network.warps"]) == candidates.STRENGTHS[0]

    @pytest.mark.parametrize("charges", [2, 8])
    def test_stops_between_two_charges_and_forfeits_nothing(self, tmp_path, charges):
        meter = Meter(method_of().components(50.0, 1e-4, "rdp"))
        with pytest.raises(Stopped):
            fitted(tmp_path, meter=meter, stopping=lambda: len(meter.charged) == charges)
        assert len(meter.charged) == charges
        assert newest(tmp_path).checkpoint.step == 60 - meter.left[parts.TEACHER]
        weights = fitted(tmp_path, meter=meter, number=2)
        assert not any(meter.left.values())
        assert len(weights["network.tone"]) > 0

    def test_a_checkpoint_without_a_mark_is_refused_where_the_run_seals(self, tmp_path):
        """As put there between two starts of the workers, of which the driver sees nothing."""
        mine = Origin("run-1", "r-1", "ab" * 32, False, bytes(32))
        meter = Meter(method_of().components(50.0, 1e-4, "rdp"))
        meter.dies_after = 3
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path, meter=meter)
        meter.dies_after, before = math.inf, dict(meter.left)
        with pytest.raises(IntegrityBroken, match="is not of run run-1"):
            fitted(tmp_path, meter=meter, number=2, origin=mine)
        assert meter.left == before
        # One begun by a version that sealed nothing goes on.
        fitted(tmp_path, meter=meter, number=2, origin=replace(mine, sealed=False))

    def test_an_attempt_runs_once(self, tmp_path):
        fitted(tmp_path)
        with pytest.raises(InvalidRequest, match="fresh"):
            fitted(tmp_path, number=1)

    def test_a_checkpoint_holds_only_what_was_noised_or_made_of_it(self, tmp_path):
        """After the answers are replaced by zeros nothing in it depends on the records."""
        kept = []
        for seed in (1, 2):
            folder = tmp_path / str(seed)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    queries.Release, "__call__", lambda self, own, S, sigma: torch.zeros_like(own)
                )
                fitted(folder, records_of(seed=seed), seed=3)
            kept.append(newest(folder).checkpoint.model)
        one, other = kept
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("channels", [1, 3])
def test_rare_and_empty_classes(tmp_path, channels):
    """Five classes: one with a single record, one with none."""
    records = records_of(channels=channels)
    labels = torch.where(records.labels == 2, 3, records.labels)
    labels[7] = 2
    facts = PublicFacts(SIZE, channels, 5)
    weights = fitted(tmp_path, replace(records, labels=labels), facts=facts, epsilon=5.0)
    denoiser = Moments.denoiser(facts, None)
    denoiser.load_state_dict(weights)
    wanted = torch.arange(40) % 5
    images = denoiser.network.draw(wanted, torch.Generator().manual_seed(0))
    assert images.shape == (40, channels, SIZE, SIZE)
    assert bool(images.isfinite().all())


def test_what_was_fitted_looks_like_the_classes(tmp_path):
    """With hardly any noise the class means of samples are those of the records."""
    weights = fitted(tmp_path, epsilon=1e4)
    denoiser = Moments.denoiser(FACTS, None)
    denoiser.load_state_dict(weights)
    labels = torch.arange(600) % CLASSES
    images = 2 * denoiser.network.draw_plain(labels, torch.Generator().manual_seed(0)) - 1
    records = records_of()
    real = images_of(records)
    for y in range(CLASSES):
        mine, theirs = images[labels == y].mean(0), real[records.labels == y].mean(0)
        assert (mine - theirs).abs().mean() < 0.15


def test_what_is_charged_is_gaussian_only():
    for part in method_of().components(1.0, 1e-4, "rdp"):
        assert type(part) is Component
        assert type(part.mechanism) is Gaussian
