"""Sensitivities and noise of every query by brute force, and each planted bug against the checks.

Each `check_*` is run on what ships, and again under each bug that it has to catch.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import privacy.moments
from privacy import moments
from privacy.errors import DataError, InvalidRequest
from privacy.moments import Release
from privacy.noise import SecureGaussian

TINY = 1e-12  # a noise multiplier that cannot be seen
SIGMA = 1.7


def silent():
    return Release(SecureGaussian.seeded(3))


def images(n, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, 4, 4, generator=generator, dtype=torch.float64)


def extremes(channels):
    """Worst cases: corners of the cube, one black, one white, one checked, and one of no number."""
    board = (torch.arange(16).reshape(4, 4) % 3 == 0).double().expand(1, channels, 4, 4)
    shape = (1, channels, 4, 4)
    return torch.cat([torch.zeros(shape), torch.ones(shape), board, torch.full(shape, math.nan)])


def chunked(x, y, rows=5):
    return list(zip(x.split(rows), y.split(rows), strict=True))


class Query:
    """One released vector: how a set of records gives it, and the sensitivity it must have."""

    def __init__(self, name, call, sensitivity):
        self.name, self.call, self.sensitivity = name, call, sensitivity


def queries(channels):
    d = channels * 16
    half, C, s = math.sqrt(d) / 2, 0.3 * math.sqrt(d), 1.3

    def vectors(x, y):
        return chunked(x.flatten(1) - 0.5, y)

    def class_sums(x, y, sigma, release):
        noisy = moments.block_sums(
            vectors(x, y),
            3,
            d,
            clip_norm=half,
            count_weight=s,
            noise_multiplier=sigma,
            release=release,
        )
        noisy[:, 0] *= s
        return noisy

    def scatter(x, y, sigma, release):
        found = moments.scatter(
            vectors(x, y), d, clip_norm=C, noise_multiplier=sigma, release=release
        )
        assert torch.equal(found, found.T)
        return found

    def mixture(x, y, sigma, release):
        counts, sums, scatters = moments.block_moments(
            vectors(x, y),
            3,
            d,
            clip_norm=C,
            count_weight=s,
            noise_multiplier=sigma,
            release=release,
        )
        return torch.cat([s * counts, sums.flatten(), scatters.flatten() / C])

    def histogram(x, y, sigma, release):
        bins = (x.flatten(1) * 8).nan_to_num(-1).long().clamp(-1, 7)
        shares = torch.stack([(bins == b).double().mean(1) for b in range(8)], 1)
        return moments.vector_sum(
            shares.split(5), 8, clip_norm=1.0, noise_multiplier=sigma, release=release
        )

    def gradient(x, y, sigma, release):
        W = torch.randn(3, d, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        return moments.softmax_gradient(
            vectors(4 * x, y), W, clip_norm=0.5, noise_multiplier=sigma, release=release
        )

    def answers(x, y, sigma, release):
        right = x.flatten(1)[:, :5] > 0.6
        return moments.right_answers(right.split(5), 5, noise_multiplier=sigma, release=release)

    return [
        Query("class sums", class_sums, math.hypot(s, half)),
        Query("scatter", scatter, C**2),
        Query("mixture", mixture, math.sqrt(s**2 + 2 * C**2)),
        Query("histogram", histogram, 1.0),
        Query("gradient", gradient, 0.5),
        Query("answers", answers, math.sqrt(5)),
    ]


CASES = [(channels, query) for channels in (1, 3) for query in queries(channels)]
NAMES = [f"{query.name}, {channels} channels" for channels, query in CASES]


@pytest.fixture(params=CASES, ids=NAMES)
def case(request):
    return request.param


def check_no_record_moves_it_further_than_the_sensitivity(channels, query):
    """... and one record moves it exactly that far: a larger S would waste noise."""
    x, y = images(11, channels), torch.arange(11) % 3
    without = query.call(x, y, TINY, silent())
    added = torch.cat([images(8, channels, 1), extremes(channels)])
    moved = [
        float(
            (
                query.call(
                    torch.cat([x, one[None]]), torch.cat([y, torch.tensor([1])]), TINY, silent()
                )
                - without
            ).norm()
        )
        for one in added
    ]
    assert max(moved) <= query.sensitivity * (1 + 1e-9)
    assert max(moved) == pytest.approx(query.sensitivity, rel=1e-6)
    # NaN adds exactly nothing, but for comparisons, which are false.
    assert moved[-1] == pytest.approx(0, abs=1e-9)


def check_noise_is_sigma_times_the_sensitivity(channels, query):
    """Of 20,000 standardised coordinates of an isometric vector, over many runs."""
    nothing = torch.zeros(0, channels, 4, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    first = query.call(*nothing, SIGMA, Release(SecureGaussian()))
    runs = 20_000 // first.numel() + 2
    draws = torch.stack(
        [query.call(*nothing, SIGMA, Release(SecureGaussian())) for _ in range(runs)]
    )
    standard = draws / (SIGMA * query.sensitivity)
    if query.name == "scatter":
        standard = moments.pack_symmetric(standard)
    elif query.name == "mixture":
        d = channels * 16
        blocks = standard[:, 3 + 3 * d :].reshape(-1, 3, d, d)
        standard = torch.cat(
            [standard[:, : 3 + 3 * d], moments.pack_symmetric(blocks).flatten(1)], 1
        )
    assert stats.kstest(standard.flatten()[:20_000].numpy(), "norm").pvalue > 1e-6
    for factor in (0.8, 1.25):
        wrong = standard.flatten()[:20_000].numpy() * factor
        assert stats.kstest(wrong, "norm").pvalue < 1e-6


CHECKS = {
    "sensitivity": check_no_record_moves_it_further_than_the_sensitivity,
    "noise": check_noise_is_sigma_times_the_sensitivity,
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_query_is_the_mechanism_that_is_charged(check, case):
    check(*case)


def _with_release(monkeypatch, change):
    """Let `change` falsify the sensitivity of every release."""
    honest = Release.__call__
    monkeypatch.setattr(
        Release,
        "__call__",
        lambda self, own, S, sigma: honest(self, own, change(S), sigma),
    )


def c_instead_of_c_squared(monkeypatch):
    _with_release(monkeypatch, math.sqrt)


def sums_divided_by_true_counts(monkeypatch):
    """A quotient of two private numbers: a record of a small class moves it as far as it likes."""
    honest = Release.__call__

    def divided(self, own, S, sigma):
        own = own.clone()
        if own.ndim == 2:
            own[:, 1:] /= own[:, :1].clamp_min(1e-9) * 1e-2
        return honest(self, own, S, sigma)

    monkeypatch.setattr(Release, "__call__", divided)


def centred_by_the_batch(monkeypatch):
    """The records' own mean is private: every record moves every other one's products."""
    clipped = privacy.moments._clipped

    def centred(x, C):
        found, present = clipped(x, C)
        return found - found.mean(0), present

    monkeypatch.setattr(privacy.moments, "_clipped", centred)


def no_clip(monkeypatch):
    monkeypatch.setattr(
        privacy.moments,
        "_clipped",
        lambda x, C: (x.nan_to_num(), x.isfinite().all(1)),
    )


def nothing_left_out(monkeypatch):
    monkeypatch.setattr(privacy.moments, "_clipped", lambda x, C: (x, x[:, 0] == x[:, 0]))


def noise_of_a_matrix_on_both_halves(monkeypatch):
    """Off-diagonal entries counted once: an isometry no more."""

    def pack(matrices):
        d = matrices.shape[-1]
        i, j = torch.triu_indices(d, d)
        return matrices[..., i, j]

    def unpack(packed):
        d = (math.isqrt(8 * packed.shape[-1] + 1) - 1) // 2
        i, j = torch.triu_indices(d, d)
        matrices = packed.new_zeros(*packed.shape[:-1], d, d)
        matrices[..., i, j] = matrices[..., j, i] = packed / 2
        return matrices

    monkeypatch.setattr(privacy.moments, "pack_symmetric", pack)
    monkeypatch.setattr(privacy.moments, "unpack_symmetric", unpack)


def count_without_its_weight(monkeypatch):
    monkeypatch.setattr(
        privacy.moments,
        "_with_weight",
        lambda x, present, s: torch.cat([3 * s * present[:, None].double(), x], 1),
    )


PLANTED = [
    (c_instead_of_c_squared, "noise", "scatter"),
    (c_instead_of_c_squared, "noise", "mixture"),
    (sums_divided_by_true_counts, "sensitivity", "class sums"),
    (centred_by_the_batch, "sensitivity", "scatter"),
    (centred_by_the_batch, "sensitivity", "mixture"),
    (no_clip, "sensitivity", "scatter"),
    (no_clip, "sensitivity", "mixture"),
    (nothing_left_out, "sensitivity", "class sums"),
    (noise_of_a_matrix_on_both_halves, "sensitivity", "scatter"),
    (count_without_its_weight, "sensitivity", "mixture"),
]


@pytest.mark.parametrize(("bug", "check", "name"), PLANTED, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("channels", [1, 3])
def test_planted_bug_is_caught(bug, check, name, channels, monkeypatch):
    query = next(q for q in queries(channels) if q.name == name)
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        CHECKS[check](channels, query)


class TestSymmetricNoise:
    def test_inner_product_with_a_unit_matrix_has_variance_sigma_squared_c4(self):
        C, d = 1.5, 6
        generator = torch.Generator().manual_seed(2)
        units = [torch.eye(d).double() / math.sqrt(d)]
        for _ in range(3):
            A = torch.randn(d, d, generator=generator, dtype=torch.float64)
            units.append((A + A.T) / (A + A.T).norm())
        single = torch.zeros(d, d, dtype=torch.float64)
        single[0, 3] = single[3, 0] = math.sqrt(0.5)
        draws = torch.stack(
            [
                moments.scatter(
                    [], d, clip_norm=C, noise_multiplier=SIGMA, release=Release(SecureGaussian())
                )
                for _ in range(3000)
            ]
        )
        for unit in [*units, single]:
            products = (draws * unit).sum((1, 2)).numpy() / (SIGMA * C**2)
            assert stats.kstest(products, "norm").pvalue > 1e-6
            assert products.var() == pytest.approx(1, abs=0.12)

    def test_packing_keeps_norms_and_is_undone(self):
        A = torch.randn(2, 5, 5, dtype=torch.float64)
        A = A + A.mT
        packed = moments.pack_symmetric(A)
        assert torch.allclose(packed.norm(dim=1), A.flatten(1).norm(dim=1))
        assert torch.allclose(moments.unpack_symmetric(packed), A)


class TestSums:
    def test_equal_a_naive_implementation(self):
        x, y = images(13, 3), torch.arange(13) % 3
        vectors = (x.flatten(1) - 0.5) * torch.logspace(-1, 1, 13)[:, None]
        C, s = 2.0, 0.7
        clipped = [v * min(1, C / float(v.norm())) for v in vectors]
        found = moments.block_moments(
            chunked(vectors, y),
            3,
            48,
            clip_norm=C,
            count_weight=s,
            noise_multiplier=TINY,
            release=silent(),
        )
        for c in range(3):
            mine = [v for v, label in zip(clipped, y, strict=True) if label == c]
            assert float(found[0][c]) == pytest.approx(len(mine))
            assert torch.allclose(found[1][c], sum(mine), atol=1e-8)
            assert torch.allclose(found[2][c], sum(torch.outer(v, v) for v in mine), atol=1e-8)

    def test_gradient_equals_autograd_record_by_record(self):
        generator = torch.Generator().manual_seed(4)
        features = torch.randn(9, 6, generator=generator, dtype=torch.float64)
        labels = torch.arange(9) % 4
        W = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        total = torch.zeros_like(W)
        for f, label in zip(features, labels, strict=True):
            own = W.clone().requires_grad_()
            torch.nn.functional.cross_entropy((own @ f)[None], label[None]).backward()
            total += own.grad * min(1, 0.8 / float(own.grad.norm()))
        found = moments.softmax_gradient(
            chunked(features, labels), W, clip_norm=0.8, noise_multiplier=TINY, release=silent()
        )
        assert torch.allclose(found, total, atol=1e-9)

    def test_workers_add_up_to_one(self, run_workers):
        x, y = images(13, 1), torch.arange(13) % 3
        query = queries(1)[2]
        alone = query.call(x, y, TINY, silent())

        def work(collective):
            own = slice(collective.rank, None, collective.size)
            release = Release(SecureGaussian(), collective)
            return query.call(x[own], y[own], TINY, release)

        for found in run_workers(3, work):
            assert torch.allclose(found, alone, atol=1e-8)

    def test_only_the_first_worker_adds_noise_and_before_the_sum(self, run_workers):
        """What each sends: rank 0's is noised already."""
        sent = {}

        class Watched:
            def __init__(self, collective):
                self.rank, self.size, self._inner = collective.rank, collective.size, collective

            def sum(self, tensors):
                sent[self.rank] = tensors["sums"].clone()
                return self._inner.sum(tensors)

        def work(collective):
            release = Release(SecureGaussian(), Watched(collective))
            own = torch.zeros(1000, dtype=torch.float64)
            return release(own, 2.0, SIGMA)

        run_workers(2, work)
        assert float(sent[0].std()) == pytest.approx(2 * SIGMA, rel=0.15)
        assert not sent[1].any()

    def test_full_range(self):
        """100,000 records in 20 classes of 3 channels: counts and sums to the last digits."""
        rng = np.random.default_rng(0)
        y = torch.from_numpy(rng.integers(0, 20, 100_000))
        x = torch.from_numpy(rng.random((100_000, 12), dtype=np.float32)) - 0.5
        noisy = moments.block_sums(
            chunked(x, y, 4096),
            20,
            12,
            clip_norm=math.sqrt(12) / 2,
            count_weight=2.0,
            noise_multiplier=TINY,
            release=silent(),
        )
        assert torch.allclose(noisy[:, 0], y.bincount().double(), atol=1e-6)
        expected = torch.zeros(20, 12, dtype=torch.float64).index_add_(0, y, x.double())
        assert torch.allclose(noisy[:, 1:], expected, atol=1e-6)


def test_more_candidates_than_were_paid_for_are_refused():
    with pytest.raises(InvalidRequest, match=r"bool \[n, 2\]"):
        moments.right_answers(
            [torch.ones(4, 3, dtype=torch.bool)], 2, noise_multiplier=1.0, release=silent()
        )


@pytest.mark.parametrize("label", [-1, 3, 91])
def test_labels_outside_the_classes_are_refused_without_naming_them(label):
    x, y = torch.zeros(1, 4), torch.tensor([label])
    given = {"clip_norm": 1.0, "noise_multiplier": 1.0, "release": silent()}
    calls = [
        lambda: moments.block_sums([(x, y)], 3, 4, count_weight=1.0, **given),
        lambda: moments.block_moments([(x, y)], 3, 4, count_weight=1.0, **given),
        lambda: moments.softmax_gradient([(x, y)], torch.zeros(3, 4), **given),
    ]
    for call in calls:
        with pytest.raises(DataError) as caught:
            call()
        assert "91" not in str(caught.value)


def test_a_release_without_records_is_noise_alone():
    found = moments.vector_sum([], 5, clip_norm=2.0, noise_multiplier=3.0, release=silent())
    assert torch.equal(found, SecureGaussian.seeded(3).gaussian((5,), 6.0))
