"""Fits a mixture and its teacher to private records: every release charged before it is drawn.

Only noised sums leave a worker, and only they and what was made of them are kept in checkpoints.
A crash forfeits what was charged and not yet saved: an attempt that follows does without it where
it can.

Shapes: n records, k classes, q coefficients, r dimensions, K components.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from privacy import moments
from privacy.errors import InvalidRequest, UmbraError
from synth.methods import moments as parts
from synth.methods.base import Attempt, PublicFacts
from synth.moments import candidates, mixture, teacher, tone
from synth.moments.lowpass import Lowpass
from synth.moments.model import MomentsModel
from synth.moments.releases import Ask, Releases
from synth.records import Records
from synth.scattering import Scattering

ROWS = 2048  # records at a time
_LEAST_BLOCKS = 50  # of the teacher's steps; a crash forfeits the rest of one
_TONE_IMAGES = 2000
_POOL = (2000, 10_000)  # synthetic images from which the teacher's space and labels are made
_POOL_FEATURES = 60_000_000  # in memory at a time, 240 MB
_GRADIENT_NORM = 0.5  # C of the teacher


class Fitting:
    """One worker's part in one attempt; the arguments are those of `Method.fit`."""

    def __init__(
        self,
        count: int,
        facts: PublicFacts,
        sizes: parts.Sizes,
        records: Records,
        releases: Releases,
        attempt: Attempt,
    ) -> None:
        """Touch no record yet.

        Raises:
            InvalidRequest: the number of records is not the one that was declared.
        """
        if records.total != count:
            raise InvalidRequest(
                f"the mechanism is stated for {count} records, found {records.total}; declare the "
                "number that the source holds"
            )
        self._N, self._k, self._sizes = count, facts.classes, sizes
        self._records = records
        self._releases, self._generator = releases, attempt.generator()
        self._P = Lowpass(facts.channels, facts.size, sizes.kept)
        self._scattering = Scattering(facts.channels, facts.size)
        self._model = MomentsModel(facts.channels, facts.size, facts.classes)

    def run(self) -> dict[str, Tensor]:
        """Release what was reserved and return the model's weights.

        Raises, beside what `Method.fit` does:
            UmbraError: a release without which there is no model was charged and lost in a crash.
        """
        self._fit_mixture()
        self._fit_tone()
        if weights := self._taught():
            self._choose_warps(*weights)
        return {f"network.{name}": value for name, value in self._model.state_dict().items()}

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the coefficients P(x - 1/2), x in [0, 1], of this worker's records, by label."""
        for images, labels in self._records.chunks(ROWS):
            yield self._P(images.double() / 2), labels

    def _required(self, answer: Tensor | None) -> Tensor:
        if answer is None:
            raise UmbraError(
                "a query was charged and its answer lost in a crash, so there is no model to "
                "release; submit a new run"
            )
        return answer

    def _fit_mixture(self) -> None:
        releases, sizes, N, P, k = self._releases, self._sizes, self._N, self._P, self._k
        bound, s = 2 * sizes.clip_norm, sizes.sums_weight

        def sums(sigma: float, release: moments.Release) -> Tensor:
            # No image of values in [0, 1] is longer: nothing is clipped.
            return moments.block_sums(
                self._chunks(),
                k,
                P.dimension,
                clip_norm=bound,
                count_weight=s,
                noise_multiplier=sigma,
                release=release,
            )

        noisy = self._required(releases.once(parts.SUMS, "sums", sums))
        std = releases.noise_std(parts.SUMS, math.hypot(s, bound))
        (means,) = releases.derived(
            ["means"], lambda: [mixture.class_means(noisy, N, P.bands, std, s)]
        )
        space = self._subspace(means)
        of_record = _within(self._chunks(), means, space.basis, sizes.clip_norm)
        centres = self._centres(of_record, space)
        self._model.put(means, space, self._mixture(of_record, centres, space))

    def _subspace(self, means: Tensor) -> mixture.Subspace:
        releases, C, N, bands = self._releases, self._sizes.clip_norm, self._N, self._P.bands

        def scatter(sigma: float, release: moments.Release) -> Tensor:
            deviations = ((c - means.to(c)[y], y) for c, y in self._chunks())
            return moments.scatter(
                deviations,
                self._P.dimension,
                clip_norm=C,
                noise_multiplier=sigma,
                release=release,
            )

        noisy = self._required(releases.once(parts.SCATTER, "scatter", scatter))
        std = releases.noise_std(parts.SCATTER, C**2)

        def make() -> list[Tensor]:
            found = mixture.subspace(noisy, N, bands, std)
            return [found.basis, found.variances, found.outside]

        return mixture.Subspace(*releases.derived(["basis", "variances", "outside"], make))

    def _centres(self, of_record: tuple[Tensor, Tensor], space: mixture.Subspace) -> Tensor:
        """Return where the components' records lie, by noisy rounds of Lloyd's; [k, K, r]."""
        releases, sizes, generator = self._releases, self._sizes, self._generator
        shape = self._k, sizes.components
        if not releases.steps(parts.LLOYD):
            return torch.zeros(*shape, len(space.variances), dtype=torch.float64)
        s, C = sizes.weight, sizes.clip_norm
        std = releases.noise_std(parts.LLOYD, math.hypot(s, C))
        (centres,) = releases.derived(
            ["centres-0"], lambda: [mixture.first_centres(*shape, space.variances, generator)]
        )
        for number in range(1, releases.steps(parts.LLOYD) + 1):
            noisy = releases.once(
                parts.LLOYD, f"lloyd-{number}", self._sums_around(of_record, centres)
            )
            if noisy is None:
                break
            made = mixture.lloyd_centres(noisy, shape, space.variances, std, s, generator)
            (centres,) = releases.derived([f"centres-{number}"], partial(list, (made,)))
        return centres

    def _sums_around(self, of_record: tuple[Tensor, Tensor], centres: Tensor) -> Ask:
        def sums(sigma: float, release: moments.Release) -> Tensor:
            return moments.block_sums(
                _assigned(of_record, centres),
                math.prod(centres.shape[:2]),
                centres.shape[2],
                clip_norm=self._sizes.clip_norm,
                count_weight=self._sizes.weight,
                noise_multiplier=sigma,
                release=release,
            )

        return sums

    def _mixture(
        self, of_record: tuple[Tensor, Tensor], centres: Tensor, space: mixture.Subspace
    ) -> mixture.Mixture:
        releases, s, C = self._releases, self._sizes.weight, self._sizes.clip_norm
        shape, r = (self._k, self._sizes.components), len(space.variances)

        def all_moments(sigma: float, release: moments.Release) -> Tensor:
            counts, sums, scatters = moments.block_moments(
                _assigned(of_record, centres),
                math.prod(shape),
                r,
                clip_norm=C,
                count_weight=s,
                noise_multiplier=sigma,
                release=release,
            )
            return torch.cat([counts[:, None], sums, scatters.flatten(1)], 1)

        noisy = self._required(releases.once(parts.MIXTURE, "mixture", all_moments))
        std = releases.noise_std(parts.MIXTURE, math.sqrt(s**2 + 2 * C**2))

        def make() -> list[Tensor]:
            counts, sums, scatters = noisy.split([1, r, r * r], dim=1)
            found = mixture.fit_mixture(
                counts[:, 0], sums, scatters.reshape(-1, r, r), shape, std, s, C
            )
            return [found.weights, found.centres, found.covariances]

        return mixture.Mixture(*releases.derived(["weights", "centres", "covariances"], make))

    def _fit_tone(self) -> None:
        def histogram(sigma: float, release: moments.Release) -> Tensor:
            return moments.vector_sum(
                (tone.fractions((images + 1) / 2) for images, _ in self._records.chunks(ROWS)),
                tone.BINS,
                clip_norm=1.0,
                noise_multiplier=sigma,
                release=release,
            )

        noisy = self._releases.once(parts.HISTOGRAM, "histogram", histogram)
        if noisy is None:
            return

        def make() -> list[Tensor]:
            labels = torch.arange(_TONE_IMAGES) % self._k
            return [tone.curve(noisy, self._model.draw_plain(labels, self._generator))]

        (levels,) = self._releases.derived(["tone"], make)
        self._model.tone = levels.float()

    def _pool(self, strength: float) -> tuple[Tensor, Tensor]:
        """Return synthetic images [n, c, S, S] and the labels that they are drawn for."""
        most = min(_POOL[1], _POOL_FEATURES // self._scattering.features)
        n = min(max(2 * self._N, _POOL[0]), most)
        labels = torch.arange(n) % self._k
        return self._model.draw_warped(labels, strength, self._generator), labels

    def _taught(self) -> tuple[teacher.FeatureSpace, Tensor] | None:
        """Return the teacher's space and weights; None if every step of it was lost."""
        releases = self._releases

        def make() -> list[Tensor]:
            images, labels = self._pool(candidates.STRENGTHS[1])
            space = teacher.FeatureSpace.of(self._scattering, images)
            return [space.mean, space.projection, teacher.fit(space(images), labels, self._k)]

        mean, projection, weights = releases.derived(
            ["teacher-mean", "teacher-projection", "teacher-begin"], make
        )
        space = teacher.FeatureSpace(self._scattering, mean.float(), projection.float())
        T, N = releases.steps(parts.TEACHER), self._N
        std = releases.noise_std(parts.TEACHER, _GRADIENT_NORM)
        descent = teacher.Descent(weights, T, std / N)
        if (state := releases.kept("teacher-state")) is not None:
            descent.restore(state)
        features: list[tuple[Tensor, Tensor]] = []
        if descent.steps_taken < T:
            # Before anything is paid: it takes long, and a crash in it would forfeit a block.
            features = [(space(x), y) for x, y in self._records.chunks(ROWS)]
        while (block := releases.pay(parts.TEACHER, max(1, T // _LEAST_BLOCKS))) > 0:
            for _ in range(block):
                gradient = self._gradient(features, descent.weights)
                # N is public under the zero-out relation.
                descent.take(releases.query(parts.TEACHER, gradient) / N)
            releases.keep({"teacher-state": descent.state()})
            releases.save(parts.TEACHER)
        return (space, descent.result) if descent.steps_taken else None

    def _gradient(self, features: Sequence[tuple[Tensor, Tensor]], weights: Tensor) -> Ask:
        def gradient(sigma: float, release: moments.Release) -> Tensor:
            return moments.softmax_gradient(
                features,
                weights.to(self._records.values.device),
                clip_norm=_GRADIENT_NORM,
                noise_multiplier=sigma,
                release=release,
            )

        return gradient

    def _choose_warps(self, space: teacher.FeatureSpace, weights: Tensor) -> None:
        """Label by the teacher; warp as strongly as serves a small classifier best, for a fee."""
        releases, M = self._releases, len(candidates.STRENGTHS)
        names = [f"{name}-{i}" for i in range(M) for name in candidates.NAMES]

        def make() -> list[Tensor]:
            tensors = []
            for strength in candidates.STRENGTHS:
                images, labels = self._pool(strength)
                said = teacher.Labels.of(space(images).double() @ weights.T, labels)
                judge = candidates.train(images, said.labels, self._k, self._generator)
                tensors += [said.offsets, said.agreement, judge]
            return tensors

        made = releases.derived(names, make)

        def answers(sigma: float, release: moments.Release) -> Tensor:
            chunks, shape = self._records.chunks(ROWS), self._records.shape
            right = candidates.right_answers(made[2::3], chunks, shape, self._k)
            return moments.right_answers(right, M, noise_multiplier=sigma, release=release)

        right = releases.once(parts.CHOICE, "choice", answers)
        best = 0 if right is None else int(right.argmax())
        offsets, agreement = made[3 * best : 3 * best + 2]
        self._model.warps.fill_(candidates.STRENGTHS[best])
        self._model.put_teacher(space, weights, offsets, agreement)


def _within(
    chunks: Iterator[tuple[Tensor, Tensor]], means: Tensor, basis: Tensor, clip_norm: float
) -> tuple[Tensor, Tensor]:
    """Return z = U^T r of every record's deviation r clipped to C, [n, r], and its label."""
    z, labels = [], []
    for coefficients, y in chunks:
        r = coefficients - means.to(coefficients)[y]
        norms = torch.linalg.vector_norm(r, dim=1, keepdim=True)
        z.append(r * (clip_norm / norms.clamp_min(clip_norm)) @ basis.to(r))
        labels.append(y)
    if not z:  # a worker without records
        return basis.new_zeros(0, basis.shape[1]), torch.zeros(0, dtype=torch.int64)
    return torch.cat(z), torch.cat(labels)


def _assigned(of_record: tuple[Tensor, Tensor], centres: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the records' z with the index of the nearest centre of their class."""
    rows = max(1, ROWS * 10 // centres.shape[1])
    for z, y in zip(of_record[0].split(rows), of_record[1].split(rows), strict=True):
        yield z, mixture.nearest(z, y, centres.to(z))
