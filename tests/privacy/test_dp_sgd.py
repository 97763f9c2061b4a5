"""The private gradient against a naive rewrite, and every planted bug against the checks.

Each `check_*` is run as a test on what ships, and again under each bug that it has to catch.
"""

import copy
import math
import threading

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import privacy.clipping
import privacy.dp_sgd
from privacy.clipping import add_clipped_vector, add_to, clip_factors, zero_sums
from privacy.collective import SingleProcess
from privacy.dp_sgd import DPSGD, PrivateGradient
from privacy.errors import InvalidRequest
from privacy.gradients import ENGINES
from privacy.gradients.engines import RecordEngine
from privacy.mechanisms import SubsampledGaussian
from privacy.noise import SecureGaussian, noise_like
from privacy.poisson import PoissonSampler

KEY = bytes(range(32))
N, K, D = 23, 3, 4
Q, SIGMA, C = 0.4, 1.3, 0.25
STEPS = 4
TINY = 1e-12  # so small a noise multiplier, or probability, that it cannot be seen


class Model(nn.Module):
    """Two layers in float64, so that nothing but rounding of 1e-16 separates it from the oracle."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(D, 5)
        self.outer = nn.Linear(5, 1)
        self.double()
        # Not torch's own generator: workers that are threads would draw from it in turns.
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x)))


def loss(model, views, target):
    """Mean over the views [K, D] of one record, which has the target []."""
    return (model(views).squeeze(1) - target).square().mean()


def make_records(n=N):
    generator = torch.Generator().manual_seed(11)
    views = torch.randn(n, K, D, generator=generator, dtype=torch.float64)
    return views, torch.randn(n, generator=generator, dtype=torch.float64) * 3


def private_gradient(
    dpsgd, *, attempt=1, noise=None, name="record", collective=None, micro_batch=3, key=KEY
):
    return PrivateGradient(
        dpsgd,
        PoissonSampler(key, attempt, dpsgd.sampling_probability),
        noise or SecureGaussian.seeded(7),
        ENGINES[name],
        collective or SingleProcess(),
        micro_batch,
    )


def call(gradient, step, records, model=None, ids=None):
    """One step over the records that are owned: all of them if not said."""
    views, targets = records
    ids = np.arange(len(targets)) if ids is None else ids
    gather = lambda i: (views[ids[i]], targets[ids[i]])  # noqa: E731
    return gradient(step, model or Model(), loss, ids, gather)


def clipped(model, record):
    """The gradient of one record, clipped, by the book."""
    model = copy.deepcopy(model)
    loss(model, *record).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    return {name: g * min(1.0, C / norm) for name, g in gradients.items()}


def naive_steps(records, steps=STEPS, seed=7):
    """Sum over the mask's records, add the known noise, divide by q N."""
    model, noise = Model(), SecureGaussian.seeded(seed)
    for step in range(steps):
        mask = PoissonSampler(KEY, 1, Q).mask(step, np.arange(len(records[1])))
        parts = [
            clipped(model, (records[0][i], records[1][i])) for i in range(len(mask)) if mask[i]
        ]
        yield {
            name: (sum(part[name] for part in parts) + noise.gaussian(tuple(p.shape), SIGMA * C))
            / (Q * len(mask))
            for name, p in model.named_parameters()
        }


def flat(gradient):
    return torch.cat([g.reshape(-1) for g in gradient.values()])


def agree(found, expected, tolerance=1e-10):
    assert list(found) == list(expected)
    for name, g in found.items():
        torch.testing.assert_close(g, expected[name], rtol=tolerance, atol=tolerance)


def check_equals_the_naive_rewrite():
    records = make_records()
    for name in ENGINES:
        gradient = private_gradient(DPSGD(N, Q, SIGMA, C), name=name)
        for step, expected in enumerate(naive_steps(records)):
            agree(call(gradient, step, records), expected)


def check_noise_law_on_an_empty_batch():
    """N(0, sigma^2 C^2) / (q N)^2 in every coordinate, though no record was chosen."""
    dpsgd = DPSGD(N, TINY, SIGMA, C)
    gradient = private_gradient(dpsgd, noise=SecureGaussian())
    draws = torch.cat([flat(call(gradient, step, make_records())) for step in range(100)])
    standard = draws.numpy() * dpsgd.expected_batch / (SIGMA * C)
    # 3,100 draws: a wrong factor of 3/2 gives a p-value below 1e-20.
    assert stats.kstest(standard, "norm").pvalue > 1e-9
    assert len(np.unique(standard)) == len(standard)


def check_divisor_is_the_expected_batch():
    """Equal records below the clip norm: the sum, not the mean, says how many were chosen."""
    views, targets = make_records(1)
    records = (views.expand(N, K, D), targets.expand(N))
    one = clipped(Model(), (views[0], targets[0]))
    gradient = private_gradient(DPSGD(N, Q, TINY, C))
    sizes = set()
    for step in range(6):
        chosen = int(PoissonSampler(KEY, 1, Q).mask(step, np.arange(N)).sum())
        agree(
            call(gradient, step, records),
            {name: g * chosen / (Q * N) for name, g in one.items()},
            tolerance=1e-8,
        )
        sizes.add(chosen)
    assert len(sizes) > 1  # or the real batch would pass for the expected one


def check_one_record_moves_the_sum_by_at_most_c():
    """Sensitivity, with gradients far beyond C whose views point in different directions."""
    views, targets = make_records()
    zeroed, most = 5, 0.0
    for step in range(20):
        with_it = private_gradient(DPSGD(N, Q, TINY, C))
        without = private_gradient(DPSGD(N, Q, TINY, C))
        full = flat(call(with_it, step, (views, targets)))
        owned = np.delete(np.arange(N), zeroed)
        rest = flat(call(without, step, (views, targets), ids=owned))
        moved = float((full - rest).square().sum().sqrt()) * Q * N
        assert moved <= C * (1 + 1e-9)
        most = max(most, moved)
    assert most > 0.9 * C  # it was in a batch, and its gradient did reach the clip norm


def check_a_record_that_is_not_finite_adds_nothing():
    views, targets = make_records()
    for bad in (math.nan, math.inf, -math.inf):
        spoiled = views.clone()
        spoiled[5, 1, 2] = bad
        owned = np.delete(np.arange(N), 5)
        steps = [s for s in range(20) if PoissonSampler(KEY, 1, Q).mask(s, np.array([5]))[0]]
        for name in ENGINES:
            found = private_gradient(DPSGD(N, Q, SIGMA, C), name=name)
            expected = private_gradient(DPSGD(N, Q, SIGMA, C), name=name)
            for step in steps[:1]:
                agree(
                    call(found, step, (spoiled, targets)),
                    call(expected, step, (views, targets), ids=owned),
                )


def check_workers_make_the_same_step(run_workers):
    """W = 1, 2, 4: the same sums to rounding, and noise once: not W times, 0 times or over W."""
    records = make_records()
    for size in (1, 2, 4):

        def work(collective, size=size):
            # Every worker has another stream, so that any but the first's would show.
            gradient = private_gradient(
                DPSGD(N, Q, SIGMA, C),
                noise=SecureGaussian.seeded(7 + collective.rank),
                collective=collective,
            )
            owned = np.arange(collective.rank, N, size)
            return [call(gradient, step, records, ids=owned) for step in range(STEPS)]

        for steps in run_workers(size, work):
            for found, expected in zip(steps, naive_steps(records), strict=True):
                agree(found, expected)


def check_sampling_is_poisson():
    """Batch sizes are binomial, records independent of each other and of other steps."""
    sampler, n, steps = PoissonSampler(KEY, 1, Q), 40, 1500
    masks = np.stack([sampler.mask(step, np.arange(n)) for step in range(steps)])
    sizes = masks.sum(axis=1)
    counts = np.bincount(sizes, minlength=n + 1)
    expected = stats.binom.pmf(np.arange(n + 1), n, Q) * steps
    often = expected > 5
    observed = np.append(counts[often], counts[~often].sum())
    law = np.append(expected[often], expected[~often].sum())
    assert stats.chisquare(observed, law).pvalue > 1e-6
    # Any two records, and any record in two steps, are uncorrelated: 5 standard errors and more.
    among = np.corrcoef(masks.T.astype(float)) - np.eye(n)
    assert np.abs(among).max() < 6 / math.sqrt(steps)
    follows = np.corrcoef(masks[1:].ravel(), masks[:-1].ravel())[0, 1]
    assert abs(follows) < 6 / math.sqrt(masks.size)


def check_attempts_draw_apart():
    """Two attempts share neither masks nor unseeded noise."""
    ids = np.arange(400)
    one, two = (PoissonSampler(KEY, attempt, Q).mask(0, ids) for attempt in (1, 2))
    assert abs(np.corrcoef(one, two)[0, 1]) < 6 / math.sqrt(len(ids))
    again = [
        flat(call(private_gradient(DPSGD(N, TINY, 1.0, 1.0), noise=SecureGaussian()), 0, data))
        for data in [make_records()] * 2
    ]
    assert not torch.equal(*again)


ALONE = {
    check.__name__: check
    for check in (
        check_equals_the_naive_rewrite,
        check_noise_law_on_an_empty_batch,
        check_divisor_is_the_expected_batch,
        check_one_record_moves_the_sum_by_at_most_c,
        check_a_record_that_is_not_finite_adds_nothing,
        check_sampling_is_poisson,
        check_attempts_draw_apart,
    )
}


@pytest.mark.parametrize("check", ALONE.values(), ids=ALONE)
def test_what_ships(check):
    check()


def test_what_ships_over_workers(run_workers):
    check_workers_make_the_same_step(run_workers)


def test_noise_is_drawn_beside_the_gradients():
    drawn = threading.Event()

    class Source(SecureGaussian):
        def gaussian(self, shape, std):
            drawn.set()
            return super().gaussian(shape, std)

    def waits(model, views, target):
        assert drawn.wait(60), "the gradients were over before noise was drawn"
        return loss(model, views, target)

    dpsgd = DPSGD(N, 1.0, SIGMA, C)
    gradient = private_gradient(dpsgd, noise=Source())
    views, targets = make_records()
    gradient(0, Model(), waits, np.arange(N), lambda i: (views[i], targets[i]))
    assert drawn.is_set()


def test_gradients_that_fail_raise_and_leave_no_noise_for_another_step():
    sources = [SecureGaussian.seeded(7), SecureGaussian.seeded(7)]
    broken, sound = (private_gradient(DPSGD(N, 1.0, SIGMA, C), noise=s) for s in sources)

    def fails(positions):
        raise MemoryError

    with pytest.raises(MemoryError):
        broken(0, Model(), loss, np.arange(N), fails)
    call(sound, 0, make_records())
    # What was drawn for the failed step is gone: the next has the noise of a second step.
    agree(call(broken, 1, make_records()), call(sound, 1, make_records()))


# The planted bugs: each replaces one function of the shipped code by a wrong one.


def clip_per_view(patch):
    shipped = RecordEngine.sum_of_clipped

    def wrong(self, model, loss, records, clip_norm, micro_batch):
        views, targets = records
        split = (views.flatten(0, 1)[:, None], targets.repeat_interleave(K))
        return shipped(self, model, loss, split, clip_norm, K * micro_batch)

    patch.setattr(RecordEngine, "sum_of_clipped", wrong)


def clip_missing(patch):
    patch.setattr(privacy.clipping, "clip_factors", lambda norms, C: torch.ones_like(norms))


def clip_without_a_layer(patch):
    """The first parameter is summed as it came."""
    shipped, first = add_clipped_vector, next(Model().parameters()).numel()

    def wrong(total, vector, clip_norm):
        factor = clip_factors(vector.norm()[None], clip_norm)
        shipped(total, vector, clip_norm)
        total[:first] += (1 - factor) * vector[:first]

    patch.setattr(privacy.clipping, "add_clipped_vector", wrong)


def not_finite_taints(patch):
    patch.setattr(privacy.clipping, "clip_factors", lambda norms, C: (C / norms).clamp(max=1.0))


def wrong_call(patch, change):
    """Let `change(self, step, ids, result)` alter what the private gradient gives."""
    shipped = PrivateGradient.__call__

    def wrong(self, step, model, loss, record_ids, gather):
        result = shipped(self, step, model, loss, record_ids, gather)
        chosen = int(self._sampler.mask(step, record_ids).sum())
        return {name: change(self, chosen, g) for name, g in result.items()}

    patch.setattr(PrivateGradient, "__call__", wrong)


def empty_batch_skipped(patch):
    wrong_call(patch, lambda self, chosen, g: g if chosen else torch.zeros_like(g))


def real_batch_as_divisor(patch):
    wrong_call(patch, lambda self, chosen, g: g * self.dpsgd.expected_batch / max(chosen, 1))


def noise(patch, change):
    patch.setattr(privacy.dp_sgd, "noise_like", change)


def zeros_like(sums):
    return {name: torch.zeros(total.shape, dtype=torch.float64) for name, total in sums.items()}


def noise_missing(patch):
    noise(patch, lambda sums, C, sigma, source: zeros_like(sums))


def noise_on_every_rank(patch):
    shipped = PrivateGradient.__init__

    class First:
        rank = 0

        def __init__(self, collective):
            self.sum, self.broadcast_from_rank0 = collective.sum, collective.broadcast_from_rank0

    def wrong(self, dpsgd, sampler, noise, engine, collective, micro_batch):
        shipped(self, dpsgd, sampler, noise, engine, First(collective), micro_batch)

    patch.setattr(PrivateGradient, "__init__", wrong)


def noise_over_workers(patch):
    noise(patch, lambda sums, C, sigma, source: noise_like(sums, C, sigma / 2, source))


def noise_of_two_thirds(patch):
    noise(patch, lambda sums, C, sigma, source: noise_like(sums, C, sigma * 2 / 3, source))


def noise_of_three_halves(patch):
    noise(patch, lambda sums, C, sigma, source: noise_like(sums, C, sigma * 3 / 2, source))


def noise_without_the_clip_norm(patch):
    noise(patch, lambda sums, C, sigma, source: noise_like(sums, 1.0, sigma, source))


def noise_for_one_parameter_only(patch):
    def wrong(sums, C, sigma, source):
        first = next(iter(sums))
        return {**zeros_like(sums), **noise_like({first: sums[first]}, C, sigma, source)}

    noise(patch, wrong)


def noise_stream_reused(patch):
    noise(
        patch,
        lambda sums, C, sigma, source: noise_like(sums, C, sigma, SecureGaussian.seeded(1)),
    )


def accumulated_twice(patch):
    def wrong(sums, part):
        add_to(sums, part)
        add_to(sums, part)

    patch.setattr(privacy.dp_sgd, "add_to", wrong)


def accumulator_not_cleared(patch):
    left = {}
    patch.setattr(
        privacy.dp_sgd, "zero_sums", lambda like: left or left.update(zero_sums(like)) or left
    )


def large_batch_cut(patch):
    """What does not fit into the first micro-batch is left out."""

    def wrong(sums, part):
        if not any(total.any() for total in sums.values()):
            add_to(sums, part)

    patch.setattr(privacy.dp_sgd, "add_to", wrong)


def shuffled_batches(patch):
    def wrong(self, step, record_ids):
        size = round(self.sampling_probability * len(record_ids))
        order = np.random.default_rng(step).permutation(len(record_ids))
        return np.isin(np.arange(len(record_ids)), order[:size])

    patch.setattr(PoissonSampler, "mask", wrong)


def mask_of(patch, attempt=None, step=None):
    shipped = PoissonSampler.mask

    def wrong(self, real_step, record_ids):
        sampler = PoissonSampler(
            self.key, self.attempt if attempt is None else attempt, self.sampling_probability
        )
        return shipped(sampler, real_step if step is None else step, record_ids)

    patch.setattr(PoissonSampler, "mask", wrong)


def same_mask_every_step(patch):
    mask_of(patch, step=0)


def same_mask_every_attempt(patch):
    mask_of(patch, attempt=0)


PLANTED = [
    (clip_per_view, check_one_record_moves_the_sum_by_at_most_c),
    (clip_per_view, check_equals_the_naive_rewrite),
    (clip_missing, check_one_record_moves_the_sum_by_at_most_c),
    (clip_without_a_layer, check_one_record_moves_the_sum_by_at_most_c),
    (not_finite_taints, check_a_record_that_is_not_finite_adds_nothing),
    (empty_batch_skipped, check_noise_law_on_an_empty_batch),
    (real_batch_as_divisor, check_divisor_is_the_expected_batch),
    (real_batch_as_divisor, check_equals_the_naive_rewrite),
    (noise_missing, check_noise_law_on_an_empty_batch),
    (noise_missing, check_equals_the_naive_rewrite),
    (noise_over_workers, check_noise_law_on_an_empty_batch),
    (noise_of_two_thirds, check_noise_law_on_an_empty_batch),
    (noise_of_three_halves, check_noise_law_on_an_empty_batch),
    (noise_without_the_clip_norm, check_noise_law_on_an_empty_batch),
    (noise_for_one_parameter_only, check_noise_law_on_an_empty_batch),
    (noise_stream_reused, check_noise_law_on_an_empty_batch),
    (noise_stream_reused, check_attempts_draw_apart),
    (accumulated_twice, check_one_record_moves_the_sum_by_at_most_c),
    (accumulated_twice, check_equals_the_naive_rewrite),
    (accumulator_not_cleared, check_equals_the_naive_rewrite),
    (large_batch_cut, check_equals_the_naive_rewrite),
    (shuffled_batches, check_sampling_is_poisson),
    (same_mask_every_step, check_sampling_is_poisson),
    (same_mask_every_attempt, check_attempts_draw_apart),
]


@pytest.mark.parametrize(("plant", "check"), PLANTED, ids=lambda part: part.__name__)
def test_planted_bug_is_caught(monkeypatch, plant, check):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize(
    "plant", [noise_on_every_rank, noise_over_workers, noise_missing], ids=lambda p: p.__name__
)
def test_bug_planted_among_workers_is_caught(monkeypatch, run_workers, plant):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_workers_make_the_same_step(run_workers)


class TestPrivateGradient:
    def test_returns_the_parameters_dtype(self):
        model = Model().float()
        views, targets = make_records()
        result = call(
            private_gradient(DPSGD(N, Q, SIGMA, C)), 0, (views.float(), targets.float()), model
        )
        expected = next(naive_steps(make_records()))
        assert {g.dtype for g in result.values()} == {torch.float32}
        agree({n: g.double() for n, g in result.items()}, expected, tolerance=1e-5)

    def test_does_not_change_the_model(self):
        model = Model()
        before = copy.deepcopy(model.state_dict())
        call(private_gradient(DPSGD(N, Q, SIGMA, C)), 0, make_records(), model)
        assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())

    def test_the_micro_batch_does_not_change_the_sums(self):
        steps = [
            call(private_gradient(DPSGD(N, Q, SIGMA, C), micro_batch=m), 0, make_records())
            for m in (1, 2, 7, N, 10**6)
        ]
        for step in steps[1:]:
            agree(step, steps[0])

    def test_gathers_at_most_a_micro_batch_at_a_time(self):
        sizes = []
        views, targets = make_records()

        def gather(positions):
            sizes.append(len(positions))
            return views[positions], targets[positions]

        gradient = private_gradient(DPSGD(N, 1.0, SIGMA, C), micro_batch=5)
        gradient(0, Model(), loss, np.arange(N), gather)
        assert sizes == [5, 5, 5, 5, 3]

    def test_a_worker_without_records_takes_part(self):
        gradient = private_gradient(DPSGD(N, Q, SIGMA, C))
        found = call(gradient, 0, make_records(), ids=np.arange(0))
        noise = SecureGaussian.seeded(7)
        for name, p in Model().named_parameters():
            drawn = noise.gaussian(tuple(p.shape), SIGMA * C) / (Q * N)
            torch.testing.assert_close(found[name], drawn)

    def test_a_sampler_of_another_q_is_refused(self):
        with pytest.raises(InvalidRequest, match="accounted for"):
            PrivateGradient(
                DPSGD(N, Q, SIGMA, C),
                PoissonSampler(KEY, 1, Q + 1e-9),
                SecureGaussian(),
                ENGINES["record"],
                SingleProcess(),
                4,
            )

    @pytest.mark.parametrize("micro_batch", [0, -1, 1.5, True])
    def test_a_micro_batch_that_would_lose_records_is_refused(self, micro_batch):
        with pytest.raises(InvalidRequest, match="micro-batch"):
            private_gradient(DPSGD(N, Q, SIGMA, C), micro_batch=micro_batch)

    def test_a_step_is_taken_once(self):
        gradient = private_gradient(DPSGD(N, Q, SIGMA, C))
        call(gradient, 3, make_records())
        for step in (3, 0):
            with pytest.raises(InvalidRequest, match="taken before"):
                call(gradient, step, make_records())
        call(gradient, 4, make_records())

    def test_batch_normalisation_is_refused(self):
        model = nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
        with pytest.raises(InvalidRequest, match="BatchNorm"):
            call(private_gradient(DPSGD(N, 1.0, SIGMA, C)), 0, make_records(), model)

    @pytest.mark.parametrize("name", ENGINES)
    def test_a_frozen_backbone_is_left_alone(self, name):
        """The head's steps are those of the network that has no other parameters."""
        model, records = Model(), make_records()
        model.inner.requires_grad_(False)
        frozen = copy.deepcopy(model.inner.state_dict())
        features = torch.tanh(model.inner(records[0]))
        head = nn.Sequential(copy.deepcopy(model.outer))
        whole, alone = (private_gradient(DPSGD(N, Q, SIGMA, C), name=name) for _ in range(2))
        for step in range(STEPS):
            found = call(whole, step, records, model)
            expected = call(alone, step, (features, records[1]), head)
            assert list(found) == ["outer.weight", "outer.bias"]
            agree({n.replace("outer", "0"): g for n, g in found.items()}, expected)
            with torch.no_grad():
                for one, other in ((model.outer, found), (head, expected)):
                    for parameter, g in zip(one.parameters(), other.values(), strict=True):
                        parameter.sub_(0.1 * g)
        assert all(torch.equal(frozen[n], p) for n, p in model.inner.state_dict().items())
        assert all(p.grad is None for p in model.parameters())

    def test_nothing_to_train_is_refused(self):
        model = Model().requires_grad_(False)
        with pytest.raises(InvalidRequest, match="requires_grad"):
            call(private_gradient(DPSGD(N, TINY, SIGMA, C)), 0, make_records(), model)


class TestDPSGD:
    def test_is_charged_as_the_mechanism_that_runs(self):
        assert DPSGD(N, Q, SIGMA, C).mechanism(9) == SubsampledGaussian(Q, SIGMA, 9)
        assert DPSGD(60000, 1 / 15, SIGMA, C).expected_batch == pytest.approx(4000)

    @pytest.mark.parametrize(
        "change",
        [
            {"records": 0},
            {"records": -3},
            {"records": 2.5},
            {"records": True},
            {"sampling_probability": 0.0},
            {"sampling_probability": 1.1},
            {"sampling_probability": math.nan},
            {"noise_multiplier": 0.0},
            {"noise_multiplier": -1.0},
            {"noise_multiplier": math.inf},
            {"noise_multiplier": 5e-324},
            {"clip_norm": 0.0},
            {"clip_norm": math.nan},
            {"clip_norm": 5e-324},
        ],
    )
    def test_invalid_parameters_are_refused(self, change):
        values = {"records": N, "sampling_probability": Q, "noise_multiplier": 1.0, "clip_norm": C}
        with pytest.raises(InvalidRequest):
            DPSGD(**values | change)
