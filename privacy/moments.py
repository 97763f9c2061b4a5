"""Noisy sums over all records: of vectors by block, of their products, of gradients and answers.

Each query is one Gaussian mechanism. A record adds one vector whose L2 norm is at most the query's
sensitivity S, whatever the record holds, so N(0, sigma^2 S^2) on every coordinate of the sum is
`Gaussian(noise_multiplier=sigma)` under the zero-out relation. Sums are over the worker's own
records, a chunk at a time, in float64; `Release` noises them and adds them up over the workers.

A record that is not finite adds nothing.

Shapes: n records of a chunk, d coordinates, B blocks, k classes, M candidates.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privacy.clipping import clip_factors
from privacy.collective import Collective, SingleProcess
from privacy.errors import DataError, InvalidRequest
from privacy.noise import SecureGaussian, privatize
from privacy.validation import positive_int, positive_number

# Vectors [n, d] of any float type, each with its block [n] int64 in [0, B): what one record is in.
Chunks = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Release:
    """Turns sums over each worker's own records into one noisy sum over all of them.

    The caller has charged the mechanism of every call before.
    """

    noise: SecureGaussian = field(repr=False)  # this attempt's own; only rank 0's is drawn from
    collective: Collective = field(default_factory=SingleProcess)

    def __call__(self, own: Tensor, sensitivity: float, noise_multiplier: float) -> Tensor:
        """Return the sum over all workers of `own`, float64, plus N(0, sigma^2 S^2).

        The same on every worker; every worker must call it.
        """
        sums = {"sums": own}
        # Noise is added once, before the sum over workers, so that the whole sum never exists
        # without it.
        if self.collective.rank == 0:
            sums = privatize(sums, sensitivity, noise_multiplier, self.noise)
        return self.collective.sum(sums)["sums"]


def block_sums(
    chunks: Chunks,
    blocks: int,
    dimension: int,
    *,
    clip_norm: float,
    count_weight: float,
    noise_multiplier: float,
    release: Release,
) -> Tensor:
    """Release (count, sum of clipped vectors) of every block, float64 [B, 1 + d].

    A record adds (s, clip(x, C)) to its block and nothing to any other, so the sensitivity of all
    blocks together is S = sqrt(s^2 + C^2), with s the count's weight; counts are divided by s
    afterwards.

    Raises:
        DataError: a block is outside [0, B).
        InvalidRequest: a number is not positive.
    """
    s, C = positive_number("the count's weight", count_weight), positive_number("C", clip_norm)
    own: Tensor | None = None
    for x_nd, block_n in chunks:
        counted_nd = _with_weight(*_clipped(x_nd, C), s)
        own = _zeros(own, (blocks, 1 + dimension), counted_nd)
        own.index_add_(0, _checked(block_n, blocks), counted_nd)
    noisy = release(_zeros(own, (blocks, 1 + dimension)), math.hypot(s, C), noise_multiplier)
    noisy[:, 0] /= s
    return noisy


def scatter(
    chunks: Chunks, dimension: int, *, clip_norm: float, noise_multiplier: float, release: Release
) -> Tensor:
    """Release the symmetric sum of x x^T over all records, x clipped to C; float64 [d, d].

    ||x x^T||_F = ||x||^2, so the sensitivity is S = C^2 (not C) in the Frobenius norm. Noise is
    N(0, sigma^2 C^4) on the diagonal and half that variance off it: that of an isometric vector.
    """
    C = positive_number("C", clip_norm)
    own: Tensor | None = None
    for x_nd, _ in chunks:
        clipped_nd, _ = _clipped(x_nd, C)
        own = _zeros(own, (dimension, dimension), clipped_nd)
        own.addmm_(clipped_nd.T, clipped_nd)
    packed = pack_symmetric(_zeros(own, (dimension, dimension)))
    return unpack_symmetric(release(packed, C**2, noise_multiplier))


def block_moments(
    chunks: Chunks,
    blocks: int,
    dimension: int,
    *,
    clip_norm: float,
    count_weight: float,
    noise_multiplier: float,
    release: Release,
) -> tuple[Tensor, Tensor, Tensor]:
    """Release counts [B], sums [B, d] and scatters [B, d, d] of every block, float64, in one query.

    A record adds (s, x, x x^T / C), x clipped to C, to its block: S = sqrt(s^2 + 2 C^2).

    Raises:
        DataError: a block is outside [0, B).
        InvalidRequest: a number is not positive.
    """
    s, C, d = positive_number("the count's weight", count_weight), float(clip_norm), dimension
    own: Tensor | None = None
    for x_nd, block_n in chunks:
        clipped_nd, present_n = _clipped(x_nd, C)
        own = _zeros(own, (blocks, 1 + d + d * (d + 1) // 2), clipped_nd)
        _checked(block_n, blocks)
        own[:, : 1 + d].index_add_(0, block_n, _with_weight(clipped_nd, present_n, s))
        for block in block_n.unique().tolist():
            of_block = clipped_nd[block_n == block]
            own[block, 1 + d :] += pack_symmetric(of_block.T @ of_block / C)
    packed = _zeros(own, (blocks, 1 + d + d * (d + 1) // 2))
    noisy = release(packed, math.sqrt(s**2 + 2 * C**2), noise_multiplier)
    return noisy[:, 0] / s, noisy[:, 1 : 1 + d], C * unpack_symmetric(noisy[:, 1 + d :])


def vector_sum(
    chunks: Iterable[Tensor],
    dimension: int,
    *,
    clip_norm: float,
    noise_multiplier: float,
    release: Release,
) -> Tensor:
    """Release the sum of vectors clipped to C, float64 [d]: S = C.

    A histogram is one, of each record's fractions of its pixels: ||f||_2 <= ||f||_1 = 1 = C.
    """
    own: Tensor | None = None
    for x_nd in chunks:
        clipped_nd, _ = _clipped(x_nd, clip_norm)
        own = _zeros(own, (dimension,), clipped_nd)
        own += clipped_nd.sum(0)
    return release(_zeros(own, (dimension,)), clip_norm, noise_multiplier)


def softmax_gradient(
    chunks: Chunks,
    weights_kd: Tensor,
    *,
    clip_norm: float,
    noise_multiplier: float,
    release: Release,
) -> Tensor:
    """Release the sum of clipped gradients of a linear softmax classifier, float64 [k, d].

    With logits W f, a record's gradient of its cross-entropy is (p - 1_y) f^T, whose norm is
    ||p - 1_y|| ||f||; clipped to C, S = C. `chunks` are features [n, d] with labels [n].

    Raises:
        DataError: a label is outside [0, k).
    """
    W_kd = weights_kd.to(torch.float64)
    own = torch.zeros_like(W_kd)
    for features, label_n in chunks:
        f_nd = features.to(torch.float64)
        errors_nk = (f_nd @ W_kd.T).softmax(1)
        errors_nk[torch.arange(len(f_nd)), _checked(label_n, len(W_kd))] -= 1
        norms_n = torch.linalg.vector_norm(errors_nk, dim=1) * torch.linalg.vector_norm(f_nd, dim=1)
        factors_n = clip_factors(norms_n, clip_norm)[:, None]
        left_out = factors_n == 0
        own.addmm_(
            (errors_nk.masked_fill(left_out, 0) * factors_n).T, f_nd.masked_fill(left_out, 0)
        )
    return release(own, clip_norm, noise_multiplier)


def right_answers(
    chunks: Iterable[Tensor], candidates: int, *, noise_multiplier: float, release: Release
) -> Tensor:
    """Release how many records each of M candidates answers rightly, float64 [M].

    A record changes each count by at most one: S = sqrt(M). `chunks` are bool [n, M].

    Raises:
        InvalidRequest: the answers are of another number of candidates than was paid for.
    """
    M = positive_int("the number of candidates", candidates)
    own: Tensor | None = None
    for right_nM in chunks:
        if right_nM.dtype != torch.bool or right_nM.shape[1:] != (M,):
            found = f"{right_nM.dtype} {list(right_nM.shape)}"
            raise InvalidRequest(f"answers: expected bool [n, {M}], found {found}")
        own = _zeros(own, (M,), right_nM)
        own += right_nM.sum(0)
    return release(_zeros(own, (M,)), math.sqrt(M), noise_multiplier)


def pack_symmetric(matrices: Tensor) -> Tensor:
    """Return symmetric [..., d, d] as [..., d (d + 1) / 2] of the same L2 norm."""
    d = matrices.shape[-1]
    i, j = torch.triu_indices(d, d, device=matrices.device)
    # An entry off the diagonal stands in the matrix twice.
    return matrices[..., i, j] * torch.where(i == j, 1.0, math.sqrt(2)).to(matrices.dtype)


def unpack_symmetric(packed: Tensor) -> Tensor:
    """Return the symmetric matrices [..., d, d] of which `packed` came from `pack_symmetric`."""
    d = (math.isqrt(8 * packed.shape[-1] + 1) - 1) // 2
    i, j = torch.triu_indices(d, d, device=packed.device)
    entries = packed / torch.where(i == j, 1.0, math.sqrt(2)).to(packed.dtype)
    matrices = packed.new_zeros(*packed.shape[:-1], d, d)
    matrices[..., i, j] = entries
    matrices[..., j, i] = entries
    return matrices


def _clipped(x_nd: Tensor, clip_norm: float) -> tuple[Tensor, Tensor]:
    """Return rows clipped to C, float64, and bool [n]: whether each is finite; if not, zeros."""
    x_nd = x_nd.to(torch.float64)
    factors_n = clip_factors(torch.linalg.vector_norm(x_nd, dim=1), clip_norm)
    present_n = factors_n > 0
    # 0 times NaN is NaN.
    return torch.where(present_n[:, None], x_nd, 0) * factors_n[:, None], present_n


def _with_weight(clipped_nd: Tensor, present_n: Tensor, s: float) -> Tensor:
    return torch.cat([s * present_n[:, None].to(clipped_nd.dtype), clipped_nd], dim=1)


def _zeros(own: Tensor | None, shape: tuple[int, ...], like: Tensor | None = None) -> Tensor:
    """Return the sum so far, or float64 zeros: a worker may own no records."""
    if own is not None:
        return own
    return torch.zeros(shape, dtype=torch.float64, device=None if like is None else like.device)


def _checked(block_n: Tensor, blocks: int) -> Tensor:
    """Return the blocks if all are in range; the message names none, for labels are private."""
    if len(block_n) and not bool(((block_n >= 0) & (block_n < blocks)).all()):
        raise DataError(
            f"a label is outside [0, {blocks}); make the spec's class list cover the labels"
        )
    return block_n
