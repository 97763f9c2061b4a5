"""From noisy sums to a mixture of Gaussians a class: post-processing, which opens no records.

Everything is in coefficients of the lowpass of x - 1/2, x in [0, 1]: an image of class y is
mu_y + U z + e, with z a mixture of K Gaussians in the r-dimensional space U of what classes have in
common, and e Gaussian outside of it with one variance a band of frequencies.

Noise is known, so every estimate is drawn towards a simpler one by noise over signal (empirical
Bayes): class means towards the grand mean, covariances towards their class's and the pooled one.

Shapes: k classes, K components, q coefficients, r dimensions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_RANK = 100  # of the space; more was never above the noise


@dataclass(frozen=True)
class Subspace:
    """The common space U and what lies outside of it."""

    basis: Tensor  # U [q, r], orthonormal columns, largest variance first
    variances: Tensor  # along them
    outside: Tensor  # [q] variance of each coefficient's part outside U, one a band


@dataclass(frozen=True)
class Mixture:
    """A mixture of K Gaussians of z for each class."""

    weights: Tensor  # [k, K]
    centres: Tensor  # [k, K, r]
    covariances: Tensor  # [k, K, r, r]


def class_means(noisy: Tensor, records: int, bands_q: Tensor, noise_std: float, s: float) -> Tensor:
    """Return the class means [k, q] of `privacy.moments.block_sums`' release [k, 1 + q].

    Means are sums over noisy counts, both released. Deviations from the grand mean shrink by
    signal / (signal + noise) in each band of frequencies, so that a class with few or no records
    is given the grand mean.

    Args:
        noisy: counts and sums.
        records: N, public.
        bands_q: the band of each coefficient.
        noise_std: standard deviation of the noise on every sum; on a count it is this over s.
        s: the count's weight.
    """
    counts_k, sums_kq = noisy[:, 0], noisy[:, 1:]
    grand_q = _shrink_by_band(
        sums_kq.sum(0)[None] / records,
        torch.full((1,), len(noisy) * (noise_std / records) ** 2, dtype=noisy.dtype),
        bands_q,
    )[0]
    # The count as it was released within the difference, so that an empty class has none.
    excess_kq = sums_kq - counts_k[:, None] * grand_q
    safe_k = counts_k.clamp_min(2 * noise_std / s)
    noise_k = (noise_std / safe_k) ** 2
    return grand_q + _shrink_by_band(excess_kq / safe_k[:, None], noise_k, bands_q)


def _shrink_by_band(values: Tensor, noise_k: Tensor, bands_q: Tensor) -> Tensor:
    """Scale rows [k, q] by signal / (signal + noise) where signal is the variance of a band."""
    # Rows with little noise tell most about the signal.
    trust_k = 1 / noise_k.square()
    excess_q = (trust_k[:, None] * (values.square() - noise_k[:, None])).sum(0) / trust_k.sum()
    signal_q = band_average(excess_q, bands_q).clamp_min(0)
    return values * signal_q / (signal_q + noise_k[:, None])


def band_average(values_q: Tensor, bands_q: Tensor) -> Tensor:
    """Replace every coefficient's value by the mean over its band."""
    sums = torch.zeros(int(bands_q.max()) + 1, dtype=values_q.dtype).index_add_(
        0, bands_q, values_q
    )
    return (sums / bands_q.bincount())[bands_q]


def subspace(scatter_qq: Tensor, records: int, bands_q: Tensor, noise_std: float) -> Subspace:
    """Return the eigenvectors that stand out of the noise of a scatter's release, at most 100.

    `noise_std` is that of a diagonal entry of the sum. The eigenvalues of such noise end at
    sqrt(2 q) noise_std / N (Wigner), where a true one of size l appears at l + (edge / 2)^2 / l.
    """
    covariance = scatter_qq / records
    edge = math.sqrt(2 * len(covariance)) * noise_std / records
    values, vectors = torch.linalg.eigh(covariance)
    kept = max(1, min(MAX_RANK, int((values > edge).sum())))
    values, vectors = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
    variances = (values + (values.square() - edge**2).clamp_min(0).sqrt()).clamp_min(0) / 2
    rest_q = covariance.diagonal() - (vectors.square() * values).sum(1)
    return Subspace(vectors, variances, band_average(rest_q, bands_q).clamp_min(0))


def first_centres(classes: int, K: int, variances_r: Tensor, generator: torch.Generator) -> Tensor:
    """Draw where Lloyd's rounds begin, [k, K, r], from the pooled Gaussian."""
    drawn = torch.randn(classes, K, len(variances_r), generator=generator, dtype=torch.float64)
    return drawn * variances_r.sqrt()


def lloyd_centres(
    noisy: Tensor,
    shape: tuple[int, int],
    variances_r: Tensor,
    noise_std: float,
    s: float,
    generator: torch.Generator,
) -> Tensor:
    """Return the next centres [k, K, r] from one round's release [k K, 1 + r].

    A centre shrinks to zero by noise over signal; one without records splits its class's largest.
    """
    k, K = shape
    r = len(variances_r)
    counts_kK, sums_kKr = noisy[:, 0].reshape(k, K), noisy[:, 1:].reshape(k, K, r)
    floor = 2 * noise_std / s
    safe_kK = counts_kK.clamp_min(floor)
    means = sums_kKr / safe_kK[..., None]
    square = means.square().sum(-1)
    shrink = (1 - r * (noise_std / safe_kK) ** 2 / square.clamp_min(1e-30)).clamp_min(0)
    centres = means * shrink[..., None]
    largest = centres[torch.arange(k), counts_kK.argmax(1)][:, None]
    split = largest + 0.5 * first_centres(k, K, variances_r, generator)
    return torch.where((counts_kK < floor)[..., None], split, centres)


def nearest(z_nr: Tensor, labels_n: Tensor, centres_kKr: Tensor) -> Tensor:
    """Return for every z the index in [0, k K) of its class's nearest centre, int64 [n]."""
    of_class = centres_kKr[labels_n]
    closest = (z_nr[:, None] - of_class).square().sum(-1).argmin(1)
    return labels_n * centres_kKr.shape[1] + closest


def fit_mixture(
    counts: Tensor,
    sums: Tensor,
    scatters: Tensor,
    shape: tuple[int, int],
    noise_std: float,
    s: float,
    clip_norm: float,
) -> Mixture:
    """Return the mixture of `privacy.moments.block_moments`' release.

    Args:
        counts: [k K], sums [k K, r] and scatters [k K, r, r].
        shape: (k, K).
        noise_std: of every sum; over s on a count, times C on a scatter's diagonal.
        s: the count's weight.
        clip_norm: C.
    """
    (k, K), r = shape, sums.shape[1]
    floor = 2 * noise_std / s
    n_kK = counts.reshape(k, K).clamp_min(floor)
    sums_kKr, scatters_kKrr = sums.reshape(k, K, r), scatters.reshape(k, K, r, r)
    n_k = n_kK.sum(1)
    middle_kr = _james_stein(sums_kKr.sum(1) / n_k[:, None], K * (noise_std / n_k) ** 2)
    excess = sums_kKr - counts.reshape(k, K)[..., None] * middle_kr[:, None]
    deviations = excess / n_kK[..., None]
    centres = middle_kr[:, None] + _james_stein(deviations, (noise_std / n_kK) ** 2)
    outer = centres[..., :, None] * centres[..., None, :]
    within = scatters_kKrr - n_kK[..., None, None] * outer
    # Expected squared Frobenius norm of the noise on a scatter.
    square = (noise_std * clip_norm) ** 2 * r * (r + 1) / 2
    pooled = within.sum((0, 1)) / n_k.sum()
    of_class = _drawn_to(within.sum(1) / n_k[:, None, None], pooled, K * square / n_k**2)
    covariances = within / n_kK[..., None, None]
    covariances = _drawn_to(covariances, of_class[:, None], square / n_kK**2)
    weights = (counts.reshape(k, K) - noise_std / s).clamp_min(0)
    nothing = weights.sum(1, keepdim=True) == 0
    weights = torch.where(nothing, 1.0 / K, weights / weights.sum(1, keepdim=True).clamp_min(1e-30))
    return Mixture(weights, centres, positive_semidefinite(covariances))


def _james_stein(vectors: Tensor, noise: Tensor) -> Tensor:
    """Shrink vectors [..., r] with noise variance [...] a coordinate to zero."""
    square = vectors.square().sum(-1).clamp_min(1e-30)
    return vectors * (1 - vectors.shape[-1] * noise / square).clamp_min(0)[..., None]


def _drawn_to(matrices: Tensor, target: Tensor, noise: Tensor) -> Tensor:
    """Draw matrices [..., r, r] to a target by their noise's squared norm over the distance."""
    distance = (matrices - target).square().sum((-2, -1)).clamp_min(1e-30)
    kept = (1 - noise / distance).clamp_min(0)[..., None, None]
    return target + kept * (matrices - target)


def positive_semidefinite(matrices: Tensor) -> Tensor:
    """Return the nearest positive semidefinite matrices of the same trace (if that is positive).

    The eigenvalues are projected on the simplex of their sum: l -> max(0, l - t).
    """
    values, vectors = torch.linalg.eigh(matrices)
    falling = values.flip(-1)
    trace = falling.sum(-1, keepdim=True).clamp_min(0)
    ranks = torch.arange(1, falling.shape[-1] + 1, dtype=falling.dtype)
    thresholds = (falling.cumsum(-1) - trace) / ranks
    above = (falling > thresholds).sum(-1, keepdim=True).clamp_min(1)
    t = thresholds.gather(-1, above - 1)
    projected = torch.where(trace > 0, (values - t).clamp_min(0), 0)
    return (vectors * projected[..., None, :]) @ vectors.mT
