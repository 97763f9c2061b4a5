"""The generator that noisy moments make: it samples images and denoises in closed form.

An image x in [-1, 1] of class y is 2 P^T (mu_y + U z + e): z a mixture of Gaussians, e Gaussian
outside of U, P the lowpass. So E[x | x + sigma n, y] is known exactly, and every sampler, guidance
and likelihood that takes a denoiser works on it.

Shapes: n images, k classes, K components, q coefficients, r dimensions of U.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from synth.moments.lowpass import Lowpass
from synth.moments.mixture import Mixture, Subspace
from synth.moments.teacher import KAPPA, FeatureSpace
from synth.moments.tone import toned
from synth.moments.warps import warp
from synth.preconditioning import EDM
from synth.scattering import Scattering

_TEACHER = ("teacher_mean", "teacher_projection", "teacher_weights", "offsets", "agreement")
_TRIES = 20
_BLANK = 8  # cosines of a side in a model without weights


class Exact(EDM):
    """D(x; sigma, y) = F(x; sigma, y), the posterior mean already; noise levels are EDM's."""

    name: ClassVar[str] = "exact"

    def c_skip(self, sigma: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """sigma."""
        return sigma


class _Spectrum(NamedTuple):
    """Eigenvalues and eigenvectors of covariances, not negative."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, covariances: Tensor) -> "_Spectrum":
        values, vectors = torch.linalg.eigh(covariances)
        return cls(values.clamp_min(0), vectors)


class MomentsModel(nn.Module):
    """Means, space, mixture, tone curve and strength of warps of one generator.

    Its weights are whatever `load_state_dict` is given: their shapes follow from what was above the
    noise. A fresh one knows nothing: every class is a Gaussian of U(0, 1)'s mean and variance.

    Args:
        channels: of an image.
        size: pixels of a side.
        classes: k; the label k means "none".
    """

    means: Tensor  # [k, q], of P (x / 2)
    basis: Tensor  # U [q, r]
    outside: Tensor  # [q] variances
    weights: Tensor  # [k, K]
    centres: Tensor  # [k, K, r]
    covariances: Tensor  # [k, K, r, r]
    tone: Tensor  # grey levels in [0, 1] to which equal steps from 0 to 1 are mapped; empty: none
    warps: Tensor  # [1]: strength
    # The teacher's, empty where there is none: space [F], [F, p]; weights [k, p + 1]; offsets [k];
    # and P[its label | drawn for] [k, k].
    teacher_mean: Tensor
    teacher_projection: Tensor
    teacher_weights: Tensor
    offsets: Tensor
    agreement: Tensor

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.channels, self.size, self.classes = channels, size, classes
        q = Lowpass(channels, size, min(size, _BLANK)).dimension
        basis = torch.zeros(q, 1, dtype=torch.float64)
        basis[0] = 1
        self.put(
            torch.zeros(classes, q, dtype=torch.float64),
            Subspace(basis, torch.full((1,), 1 / 12), torch.full((q,), 1 / 12).double()),
            Mixture(
                torch.ones(classes, 1).double(),
                torch.zeros(classes, 1, 1).double(),
                torch.full((classes, 1, 1, 1), 1 / 12).double(),
            ),
        )
        for name in ("tone", *_TEACHER):
            self.register_buffer(name, torch.zeros(0))
        self.register_buffer("warps", torch.zeros(1))
        self.register_load_state_dict_pre_hook(_take_shapes)

    def put(self, means: Tensor, space: Subspace, mixture: Mixture) -> None:
        """Replace the distribution."""
        found = {
            "means": means,
            "basis": space.basis,
            "outside": space.outside,
            "weights": mixture.weights,
            "centres": mixture.centres,
            "covariances": mixture.covariances,
        }
        for name, value in found.items():
            # float32 on file: what is lost is far below the noise.
            self.register_buffer(name, value.to(torch.float32).contiguous())
        _forget(self)

    @property
    def lowpass(self) -> Lowpass:
        """P, as its number of coefficients tells."""
        kept = round((self.means.shape[1] / self.channels) ** 0.5)
        return Lowpass(self.channels, self.size, kept)

    @cached_property
    def _within(self) -> _Spectrum:
        """That of z's components, [k, K, r] and [k, K, r, r]."""
        return _Spectrum.of(self.covariances.double())

    @cached_property
    def _outside(self) -> _Spectrum:
        """That of e, [q] and [q, q]: what is left of a diagonal Gaussian outside of U."""
        U = self.basis.double()
        root = self.outside.double().sqrt()[:, None] * (torch.eye(len(U)).to(U) - U @ U.T)
        return _Spectrum.of(root.T @ root)

    def put_teacher(
        self, space: FeatureSpace, weights: Tensor, offsets: Tensor, agreement: Tensor
    ) -> None:
        """Let a teacher label what is drawn."""
        parts = (space.mean, space.projection, weights, offsets, agreement)
        for name, value in zip(_TEACHER, parts, strict=True):
            self.register_buffer(name, value.to(torch.float32).contiguous())

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw an image for each label [n]; float32 [n, c, S, S] in [-1, 1].

        Where there is a teacher, an image has the label that the teacher gives it, which is often
        not the class it was drawn for: that carries much of what the teacher knows. So images are
        drawn for all classes that these labels come from, and those that got a label that is
        wanted are taken. Labels of all classes at once waste fewest.

        All that is random comes from the generator, which is on the CPU.
        """
        strength = float(self.warps)
        if len(self.agreement) == 0:
            return self.draw_warped(labels, strength, generator)
        images = torch.empty(len(labels), self.channels, self.size, self.size)
        waiting = torch.arange(len(labels))
        for _ in range(_TRIES):
            if len(waiting) == 0:
                return images
            drawn_for = _choose(self._sources(labels[waiting]), generator)
            drawn = self.draw_warped(drawn_for, strength, generator)
            places, taken = _matched(labels[waiting], self._labelled(drawn, drawn_for))
            images[waiting[places]] = drawn[taken]
            unmet = torch.ones(len(waiting), dtype=torch.bool)
            unmet[places] = False
            waiting = waiting[unmet]
        # A label that the teacher hardly ever gives.
        images[waiting] = self.draw_warped(labels[waiting], strength, generator)
        return images

    def _sources(self, labels: Tensor) -> Tensor:
        """Return P[drawn for] of the images that got these labels, a row for each to draw now."""
        counts = labels.bincount(minlength=self.classes).float()
        given = self.agreement / self.agreement.sum(0).clamp_min(1e-9)
        share = given @ counts + 1e-6 * counts
        return share.expand(math.ceil(1.3 * len(labels)) + self.classes, -1)

    def _labelled(self, images: Tensor, drawn_for: Tensor) -> Tensor:
        scattering = Scattering(self.channels, self.size)
        space = FeatureSpace(scattering, self.teacher_mean, self.teacher_projection)
        logits = space(images) @ self.teacher_weights.T + self.offsets
        return (logits + KAPPA * functional.one_hot(drawn_for, self.classes)).argmax(1)

    def draw_warped(self, labels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        """Draw images for labels [n] without a teacher, warped; float32 in [-1, 1]."""
        x = self.draw_plain(labels, generator)
        x = x if len(self.tone) == 0 else toned(x, self.tone, generator)
        return warp(x, strength, generator) * 2 - 1

    def draw_plain(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw images of the mixture alone, float32 [n, c, S, S] in [0, 1]."""
        spectrum = self._within
        component = _choose(self.weights[labels], generator)
        n, r = len(labels), self.basis.shape[1]
        z_nr = torch.randn(n, r, generator=generator)
        z_nr *= spectrum.values.float().sqrt()[labels, component]
        axes = spectrum.vectors.float()[labels, component]
        z_nr = self.centres[labels, component] + torch.bmm(axes, z_nr[..., None])[..., 0]
        e_nq = torch.randn(n, len(self.outside), generator=generator) * self.outside.sqrt()
        # U (z - U^T e) + e = U z + (I - U U^T) e.
        c_nq = self.means[labels] + e_nq + (z_nr - e_nq @ self.basis) @ self.basis.T
        return (self.lowpass.inverse(c_nq) + 0.5).clamp_(0, 1)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return E[x | x + sigma n, y], [n, c, S, S] in the dtype of x.

        Args:
            x: noisy images [n, c, S, S].
            sigma: [n].
            label: [n]; k means "none", and so does None.
        """
        if label is None:
            label = torch.full((len(x),), self.classes, device=x.device)
        # In halves of the image's unit, as all of the model is.
        c_nq, level_n = self.lowpass(x.double() / 2), sigma.double() / 2
        out = torch.empty_like(c_nq)
        for y in label.unique().tolist():
            of = label == y
            among = range(self.classes) if y == self.classes else [y]
            means, evidence = zip(
                *(self._given(c_nq[of], level_n[of], c) for c in among), strict=True
            )
            share = torch.stack(evidence).softmax(0)
            out[of] = (share[..., None] * torch.stack(means)).sum(0)
        return (2 * self.lowpass.inverse(out)).to(x.dtype)

    def _given(self, c_nq: Tensor, sigma_n: Tensor, y: int) -> tuple[Tensor, Tensor]:
        """Return posterior mean [n, q] and log evidence [n] in class y, but for a constant."""
        outside, U = self._outside, self.basis.double()
        noise = sigma_n.square()[:, None]
        shifted_nq = c_nq - self.means[y].double()
        a_nr = shifted_nq @ U
        # Outside of U: one Gaussian.
        b_nq = (shifted_nq - a_nr @ U.T) @ outside.vectors
        total = outside.values + noise
        evidence = -0.5 * (b_nq.square() / total + total.log()).sum(1)
        outside_nq = (b_nq * outside.values / total) @ outside.vectors.T
        # Within: sum_k w_k (m_k + S_k (S_k + sigma^2)^-1 (a - m_k)), w_k ~ pi_k N(a; m_k, S_k +
        # sigma^2).
        values, vectors = self._within.values[y], self._within.vectors[y]
        centres = self.centres[y].double()
        t_nKr = torch.einsum("nKr,Krs->nKs", a_nr[:, None] - centres, vectors)
        total_nKr = values + noise[..., None]
        logs = self.weights[y].double().log() - 0.5 * (
            t_nKr.square() / total_nKr + total_nKr.log()
        ).sum(-1)
        pulled = torch.einsum("nKs,Krs->nKr", t_nKr * values / total_nKr, vectors)
        z_nr = (logs.softmax(1)[..., None] * (centres + pulled)).sum(1)
        return self.means[y].double() + z_nr @ U.T + outside_nq, evidence + logs.logsumexp(1)


def _matched(wanted: Tensor, offered: Tensor) -> tuple[Tensor, Tensor]:
    """Pair equal labels: places in `wanted` and in `offered`, each used once at most."""
    places, taken = [], []
    for label in wanted.unique().tolist():
        here, there = (wanted == label).nonzero()[:, 0], (offered == label).nonzero()[:, 0]
        n = min(len(here), len(there))
        places.append(here[:n])
        taken.append(there[:n])
    return torch.cat(places), torch.cat(taken)


def _choose(weights_nK: Tensor, generator: torch.Generator) -> Tensor:
    """Draw an index from each row of weights."""
    u = torch.rand(len(weights_nK), 1, generator=generator, dtype=torch.float64)
    below = weights_nK.double().cumsum(1) <= u * weights_nK.double().sum(1, keepdim=True)
    return below.sum(1).clamp_max(weights_nK.shape[1] - 1)


def _take_shapes(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Give the buffers the shapes of what will be loaded into them."""
    for name, buffer in list(module.named_buffers(recurse=False)):
        if prefix + name in state:
            empty = torch.empty_like(state[prefix + name], device=buffer.device)
            setattr(module, name, empty)
    _forget(module)


def _forget(module: nn.Module) -> None:
    """Drop what was computed from the buffers before."""
    for name in ("_within", "_outside"):
        module.__dict__.pop(name, None)
