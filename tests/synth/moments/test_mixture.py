"""Fits from sums: what noise does, and what is recovered without it."""

import math

import pytest
import torch

from privacy import moments
from privacy.noise import SecureGaussian
from synth.moments import mixture
from synth.moments.lowpass import Lowpass

TINY = 1e-9


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def release(seed=1):
    return moments.Release(SecureGaussian.seeded(seed))


class TestLowpass:
    @pytest.mark.parametrize(("channels", "size", "kept"), [(1, 8, 8), (3, 7, 4), (1, 28, 14)])
    def test_is_orthonormal(self, channels, size, kept):
        P = Lowpass(channels, size, kept)
        c = torch.randn(5, P.dimension, generator=generator(), dtype=torch.float64)
        images = P.inverse(c)
        assert images.shape == (5, channels, size, size)
        assert torch.allclose(P(images), c)
        assert torch.allclose(images.flatten(1).norm(dim=1), c.norm(dim=1))

    def test_keeps_what_is_smooth(self):
        flat = torch.full((1, 3, 9, 9), 0.25, dtype=torch.float64)
        P = Lowpass(3, 9, 2)
        assert torch.allclose(P.inverse(P(flat)), flat)
        assert P.bands.tolist() == [0, 1, 1, 1, 2, 3, 3, 3, 4, 5, 5, 5]

    def test_bands_of_channels_differ(self):
        bands = Lowpass(2, 8, 5).bands.reshape(2, 25)
        assert set(bands[0].tolist()).isdisjoint(bands[1].tolist())
        assert len(bands.unique()) == int(bands.max()) + 1


class TestClassMeans:
    def test_without_noise_are_the_means(self):
        x = torch.randn(60, 16, generator=generator(), dtype=torch.float64)
        y = torch.arange(60) % 4
        sums = torch.zeros(4, 16, dtype=torch.float64).index_add_(0, y, x)
        noisy = torch.cat([y.bincount()[:, None].double(), sums], 1)
        bands = Lowpass(1, 4, 4).bands
        means = mixture.class_means(noisy, 60, bands, TINY, 1.0)
        assert torch.allclose(means, sums / 15, atol=1e-6)

    def test_a_class_without_records_is_given_the_grand_mean(self):
        noisy = torch.zeros(3, 17, dtype=torch.float64)
        noisy[:2, 0] = 1000
        noisy[0, 1:], noisy[1, 1:] = 800, 200
        noise_std, s = 5.0, 5.0
        noise = SecureGaussian.seeded(4).gaussian((3, 17), noise_std)
        noise[:, 0] /= s
        means = mixture.class_means(noisy + noise, 2000, Lowpass(1, 4, 4).bands, noise_std, s)
        assert torch.allclose(means[2], torch.full((16,), 0.5).double(), atol=0.1)
        assert torch.allclose(means[0], torch.full((16,), 0.8).double(), atol=0.05)

    def test_shrinking_lowers_the_error_under_much_noise(self):
        truth = 0.1 * torch.randn(10, 64, generator=generator(5), dtype=torch.float64)
        truth -= truth.mean(0)
        n, noise_std = 100, 60.0
        noise = SecureGaussian.seeded(6).gaussian((10, 65), noise_std)
        noisy = torch.cat([torch.full((10, 1), 100.0).double(), truth * n], 1) + noise
        means = mixture.class_means(noisy, 1000, Lowpass(1, 8, 8).bands, noise_std, 5.0)
        naive = noisy[:, 1:] / n
        assert (means - truth).square().mean() < 0.4 * (naive - truth).square().mean()


class TestSubspace:
    def test_finds_the_directions_above_the_noise_and_no_other(self):
        q, N, sigma, C = 100, 1000, 2.0, 1.0
        axes, _ = torch.linalg.qr(torch.randn(q, 3, generator=generator(), dtype=torch.float64))
        edge = math.sqrt(2 * q) * sigma * C**2 / N
        true = torch.tensor([8.0, 4.0, 2.0], dtype=torch.float64) * edge
        scatter = N * (axes * true) @ axes.T
        noise = moments.scatter([], q, clip_norm=C, noise_multiplier=sigma, release=release())
        found = mixture.subspace(scatter + noise, N, Lowpass(1, 10, 10).bands, sigma * C**2)
        assert found.basis.shape[1] == 3
        assert torch.allclose(found.variances, true, rtol=0.1)
        assert (found.basis.T @ axes).diagonal().abs().min() > 0.9

    def test_noise_alone_gives_one_direction_of_hardly_any_variance(self):
        q, N = 64, 1000
        noise = moments.scatter([], q, clip_norm=1.0, noise_multiplier=3.0, release=release(2))
        found = mixture.subspace(noise, N, Lowpass(1, 8, 8).bands, 3.0)
        assert found.basis.shape[1] <= 2
        assert float(found.variances[0]) < 2 * math.sqrt(2 * q) * 3 / N

    def test_the_rest_is_one_variance_a_band(self):
        bands = Lowpass(1, 4, 4).bands
        variances = 1.0 / (1 + bands.double())
        scatter = 500 * torch.diag(variances)
        scatter[0, 0] += 500 * 50
        # A scatter of which only the first direction is above the noise's edge.
        found = mixture.subspace(scatter, 500, bands, 500 * 2 / math.sqrt(32))
        assert found.basis.shape[1] == 1
        expected = variances.clone()
        expected[0] = 0
        assert torch.allclose(found.outside, expected, atol=1e-9)


class TestLloyd:
    def test_nearest_centre_is_of_the_own_class(self):
        centres = torch.tensor([[[0.0], [1.0]], [[0.4], [5.0]]])
        z, labels = torch.tensor([[0.45], [0.45], [0.9]]), torch.tensor([0, 1, 1])
        assert mixture.nearest(z, labels, centres).tolist() == [0, 2, 2]

    def test_a_centre_without_records_splits_the_largest(self):
        noisy = torch.tensor([[100.0, 300.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
        variances = torch.full((2,), 1e-4, dtype=torch.float64)
        centres = mixture.lloyd_centres(noisy, (1, 2), variances, 1e-3, 1.0, generator())
        expected = torch.tensor([3.0, 0.0], dtype=torch.float64)
        assert torch.allclose(centres[0, 0], expected, atol=1e-6)
        assert 0 < (centres[0, 1] - expected).norm() < 0.05

    def test_noise_alone_leaves_centres_near_zero(self):
        noise = SecureGaussian.seeded(2).gaussian((40, 21), 10.0)
        noise[:, 0] += 100
        centres = mixture.lloyd_centres(
            noise, (4, 10), torch.ones(20).double(), 10.0, 1.0, generator()
        )
        naive = noise[:, 1:] / noise[:, :1]
        assert centres.norm() < 0.6 * naive.norm()


def sums_of(z, blocks, B):
    r = z.shape[1]
    counts = blocks.bincount(minlength=B).double()
    sums = torch.zeros(B, r, dtype=torch.float64).index_add_(0, blocks, z)
    scatters = torch.stack([z[blocks == b].T @ z[blocks == b] for b in range(B)])
    return counts, sums, scatters


class TestFitMixture:
    def test_recovers_a_gaussian_mixture_without_noise(self):
        """The whole way through the private queries, at a noise that cannot be seen."""
        k, K, r, n = 2, 2, 3, 4000
        g = generator(3)
        centres = torch.tensor([[[3.0, 0, 0], [-3, 0, 0]], [[0, 3, 1], [0, -3, 1]]]).double()
        factors = 0.3 * torch.randn(k, K, r, r, generator=g, dtype=torch.float64)
        shares = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
        y = torch.arange(n) % k
        j = (torch.rand(n, generator=g) > shares[y, 0]).long()
        z = centres[y, j] + torch.einsum(
            "nrs,ns->nr", factors[y, j], torch.randn(n, r, generator=g, dtype=torch.float64)
        )
        C, s = 100.0, 25.0
        found_centres = mixture.first_centres(k, K, torch.full((r,), 4.0).double(), g)
        for _ in range(8):
            blocks = mixture.nearest(z, y, found_centres)
            noisy = moments.block_sums(
                [(z, blocks)],
                k * K,
                r,
                clip_norm=C,
                count_weight=s,
                noise_multiplier=TINY,
                release=release(),
            )
            found_centres = mixture.lloyd_centres(
                noisy, (k, K), torch.full((r,), 4.0).double(), TINY, s, g
            )
        released = moments.block_moments(
            [(z, mixture.nearest(z, y, found_centres))],
            k * K,
            r,
            clip_norm=C,
            count_weight=s,
            noise_multiplier=TINY,
            release=release(),
        )
        found = mixture.fit_mixture(*released, (k, K), TINY, s, C)
        for c in range(k):
            for t in range(K):
                match = int((found.centres[c] - centres[c, t]).norm(dim=1).argmin())
                of = z[(y == c) & (j == t)]
                assert torch.allclose(found.centres[c, match], of.mean(0), atol=1e-3)
                assert torch.allclose(
                    found.covariances[c, match], torch.cov(of.T, correction=0), atol=1e-3
                )
                assert float(found.weights[c, match]) == pytest.approx(
                    float(shares[c, t]), abs=0.03
                )

    def test_covariances_are_drawn_to_the_class_and_the_pool_by_their_noise(self):
        """With noise far above the differences every component has the pooled covariance."""
        g = generator(1)
        z = torch.randn(3000, 4, generator=g, dtype=torch.float64)
        blocks = torch.arange(3000) % 6
        counts, sums, scatters = sums_of(z, blocks, 6)
        noise_std, C = 20.0, 5.0
        noise = torch.randn(6, 4, 4, generator=g, dtype=torch.float64) * noise_std * C
        scatters += (noise + noise.mT) / 2
        found = mixture.fit_mixture(counts, sums, scatters, (2, 3), noise_std, 2.0, C)
        error = (found.covariances - torch.eye(4)).square().sum((-2, -1))
        raw = (scatters / 500 - torch.eye(4)).square().sum((-2, -1))
        assert error.mean() < 0.5 * raw.mean()

    def test_a_class_without_records_is_a_sound_mixture(self):
        noise = SecureGaussian.seeded(5)
        counts = torch.tensor([500.0, 500, 0, 0]).double() + noise.gaussian((4,), 10.0)
        found = mixture.fit_mixture(
            counts,
            noise.gaussian((4, 3), 30.0),
            500 * torch.eye(3).double().repeat(4, 1, 1),
            (2, 2),
            30.0,
            3.0,
            5.0,
        )
        assert torch.allclose(found.weights.sum(1), torch.ones(2).double())
        assert bool(torch.linalg.eigvalsh(found.covariances).min() > -1e-9)
        assert bool(found.centres.isfinite().all())


class TestPositiveSemidefinite:
    def test_keeps_the_trace_and_what_is_positive_already(self):
        A = torch.randn(20, 6, 6, generator=generator(), dtype=torch.float64)
        A = A + A.mT + torch.eye(6)
        found = mixture.positive_semidefinite(A)
        values = torch.linalg.eigvalsh(found)
        assert values.min() > -1e-9
        trace = A.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(0)
        assert torch.allclose(found.diagonal(dim1=-2, dim2=-1).sum(-1), trace)
        assert torch.allclose(mixture.positive_semidefinite(found), found)
