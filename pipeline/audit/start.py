"""The start of a training worker on toy images, as the mechanism's audit runs it.

All of it is what a worker runs: `Attempt.start`, the method's `fit`, its warm-up and its loop. Only
the images, the network and the meter are toys. The network is linear in its parameters, so that a
record's gradient is the record itself: channel c of its image is the gradient of layer c.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.audit.counts import paid_counts
from privacy.audit.mechanism import Check, MechanismAudit, audit_mechanism
from privacy.audit.mechanism.audit import FEWEST_TRIALS
from privacy.audit.mechanism.releases import ToyImages, audit_class_means
from privacy.audit.mechanism.runs import IDLE, LAYERS, Start, Toy
from privacy.collective import Collective
from privacy.dp_sgd import DPSGD
from privacy.gradients import base as gradients
from privacy.gradients import choose
from privacy.keystream import os_key
from privacy.ledger.records import Component
from privacy.mechanisms import Gaussian
from privacy.records import LabelledRecords, own
from synth.methods import base
from synth.methods.diffusion import PRIVATE, WARMUP, Diffusion
from synth.preconditioning import Denoiser, Preconditioning
from synth.records import Records
from synth.settings import ModelSettings, TrainSettings, WarmupSettings

_WHOLE = 100  # a pixel of this value is a gradient of norm C where the label's factor is 1
# What a label multiplies a gradient by. Pixels reach up to 2.55 C, so that norms of 30 C and 30,000
# C need a factor.
_FACTORS = (1.0, 30.0, 3e4, np.nan, np.inf, -np.inf)
_NAN = 3  # index of the NaN, which is equal to nothing
_STILL = 1e-15  # a learning rate that leaves the network as it is
_MOST_VIEWS = 2  # the audit of the step alone has as many as training
_MICRO_BATCH = 3  # smaller than most batches, so that batches are made of several
# Of a toy warm-up: only its one batch of images is looked at.
_WARMUP = WarmupSettings(noise_multiplier=1, clip_norm=1, steps=1, batch=1, learning_rate=_STILL)
_BATCH_OF_CLASS = 50  # in a batch of so many images a class, one is missing once in 10^20


class _Plain(Preconditioning):
    """D = F, on views that are the image itself but for a billionth."""

    name: ClassVar[str] = "plain"

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.zeros_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    c_in = weight = c_out
    c_noise = c_skip

    def noise_level_icdf(self, u: Tensor) -> Tensor:
        return 1e-9 * (1 + u)


class _Network(nn.Module):
    """F(x, y) = x + (1/2 + sum_c layer_c x_c factor_y) e, where e is a pixel that is idle.

    At layers of zero the gradient of ||F - x||^2 is factor_y x. `shown` is told what comes in, and
    returns the label to take.
    """

    factors: Tensor
    idle: Tensor

    def __init__(self, size: int, clip_norm: float, shown: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        layers = [torch.zeros(size**2, dtype=torch.float64) for _ in range(LAYERS)]
        self.layers = nn.ParameterList(layers)
        scale = clip_norm * 255 / (_WHOLE * LAYERS**0.5)
        self.register_buffer("factors", scale * torch.tensor(_FACTORS, dtype=torch.float64))
        self.register_buffer("idle", torch.zeros(LAYERS, size, size, dtype=torch.float64))
        self.idle[-1, -1, -1] = 1
        self._shown = shown

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        """Return [K, channels, height, width]."""
        label = self._shown(x, label)
        x_KCP = (x + 1).flatten(2) / 2
        along_K = sum(x_KCP[:, c] @ layer for c, layer in enumerate(self.layers))
        amount_K = 0.5 + along_K * self.factors[label]
        return x + amount_K[:, None, None, None] * self.idle


class _ToyDiffusion(Diffusion):
    """The method that ships, with a toy for its network."""

    toy: Denoiser

    def denoiser(self, facts: base.PublicFacts, model: ModelSettings) -> Denoiser:  # type: ignore[override]
        """Return the toy."""
        return self.toy


class _Meter:
    """Counts charges in memory."""

    def __init__(self, plan: Sequence[Component]) -> None:
        self.plan = {part.name: part.mechanism.steps for part in plan}
        self.charged: Counter[str] = Counter()

    def charge(self, component: str, steps: int) -> str:
        """See `synth.methods.base.Meter`."""
        self.charged[component] += steps
        return ""

    def remaining(self, component: str) -> int:
        """See `synth.methods.base.Meter`."""
        return self.plan[component] - self.charged[component]


class _Seen(Exception):
    """Ends a worker of which no more than its warm-up was wanted."""


@dataclass(frozen=True)
class WorkerStart:
    """The `Path` of a worker from its start to its last step, and what its warm-up releases.

    All starts are of one run and share its key: they differ by what a start draws afresh.
    """

    views: int
    warmup: bool  # whether the run warms up before its first step
    run_key: bytes = field(default_factory=os_key, repr=False)
    unpaid: set[str] = field(default_factory=set)  # components that were used without a charge

    @property
    def engine(self) -> gradients.GradientEngine:
        """Return the engine that training chooses for toys of few records."""
        return choose(16, self.views, "cpu", "float32")

    @property
    def key(self) -> Callable[[], bytes]:
        """See `Path.key`."""
        return lambda: self.run_key

    def take(
        self,
        toy: Toy,
        start: Start,
        collective: Collective,
        steps: int,
        present: np.ndarray,
        bad: float | None = None,
    ) -> np.ndarray:
        """See `Path.take`."""
        taken: list[np.ndarray] = []

        def on_step(network: _Network) -> None:
            taken.append(np.stack([layer.grad.numpy().copy() for layer in network.layers]))

        warmup = _WARMUP if self.warmup else None
        images, labels = _gradient_images(toy, present, bad)
        self._fit(
            *(toy.dpsgd, images, labels, start, collective, steps),
            *(len(_FACTORS), warmup),
            on_step=on_step,
        )
        return np.stack(taken)

    def means(
        self, toy: ToyImages, start: Start, collective: Collective, present: np.ndarray
    ) -> np.ndarray:
        """Return what the warm-up trains on: class means, float64 [classes, numbers] in [0, 1]."""
        found: dict[int, np.ndarray] = {}

        def on_means(x: Tensor, label: Tensor) -> None:
            pixels = (x.detach().double() + 1).permute(0, 2, 3, 1).flatten(1) / 2
            found.update(zip(label.tolist(), pixels.numpy(), strict=True))
            raise _Seen

        warmup = _WARMUP.model_copy(
            update={
                "noise_multiplier": toy.noise_multiplier,
                "clip_norm": toy.clip_norm,
                "batch": _BATCH_OF_CLASS * toy.classes,
            }
        )
        dpsgd = DPSGD(toy.records, 1.0, 1.0, 1.0)
        images, labels = toy.images(present)
        with suppress(_Seen):
            self._fit(
                *(dpsgd, images, labels, start, collective, 1),
                *(toy.classes, warmup),
                on_means=on_means,
            )
        return np.stack([found[label] for label in range(toy.classes)])

    def _fit(
        self,
        dpsgd: DPSGD,
        images: np.ndarray,
        labels: np.ndarray,
        start: Start,
        collective: Collective,
        steps: int,
        classes: int,
        warmup: WarmupSettings | None,
        on_step: Callable[["_Network"], None] = lambda network: None,
        on_means: Callable[[Tensor, Tensor], None] = lambda x, label: None,
    ) -> None:
        """Do what a worker does from its start; see `pipeline.cluster.training`."""
        plan = [Component(PRIVATE, dpsgd.mechanism(steps))]
        if warmup is not None:
            plan.insert(0, Component(WARMUP, Gaussian(warmup.noise_multiplier)))
        meter, done = _Meter(plan), Counter[str]()

        def shown(x: Tensor, label: Tensor) -> Tensor:
            phase = WARMUP if warmup and not done[WARMUP] else PRIVATE
            if collective.rank == 0 and meter.charged[phase] <= done[phase]:
                self.unpaid.add(phase)
            if phase == PRIVATE:
                return label
            on_means(x, label)
            return torch.zeros_like(label)  # a factor that is not finite would spoil the network

        def on_progress(phase: str, count: int, total: int) -> None:
            done[phase] = count
            if phase == PRIVATE:
                on_step(network)

        size = images.shape[1]
        network = _Network(size, dpsgd.clip_norm, shown)
        method = _ToyDiffusion(
            dpsgd.records,
            base.PublicFacts(size, LAYERS, classes),
            dpsgd.clip_norm,
            base.WorkerResources("cpu", workers=collective.size),
            model=ModelSettings(label_dropout=0),
            train=TrainSettings(
                batch=1,  # what was reserved holds
                steps=steps,
                views=self.views,
                learning_rate=_STILL,
                warmup=warmup,
                micro_batch=_MICRO_BATCH,
            ),
        )
        method.toy = Denoiser(network, _Plain())
        attempt = base.Attempt.start(start.attempt, start.key, start.seed, collective)
        # No two workers load in the same order.
        order = np.roll(np.arange(len(labels)), collective.rank)
        loaded = [LabelledRecords(images[order], labels[order])]
        owned = own(loaded, attempt.key, collective.rank, collective.size, dpsgd.records)
        records = Records.of(owned, torch.device("cpu"))
        with tempfile.TemporaryDirectory(prefix="umbra-audit-") as folder:
            checkpoints = Path(folder)
            method.fit(records, plan, attempt, meter, checkpoints, collective, on_progress)


def _gradient_images(
    toy: Toy, present: np.ndarray, bad: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 [N, H, W, 3], record i's gradient in its pixel i, and labels."""
    records = toy.dpsgd.records
    size = int(np.ceil((records + IDLE) ** 0.5))
    images = np.zeros((records, size * size, LAYERS), np.uint8)
    labels = np.zeros(records, np.int64)
    for i in present:
        label = next(k for k, factor in enumerate(_FACTORS) if toy.norms[i] / factor < 2.55)
        labels[i], images[i, i] = label, round(_WHOLE * toy.norms[i] / _FACTORS[label])
    if bad is not None:
        labels[toy.canary] = _FACTORS.index(bad) if bad in _FACTORS else _NAN
    return images.reshape(records, size, size, LAYERS), labels


_STARTED = "from a worker's start: "


def audit_starts(
    found: MechanismAudit, dpsgd: DPSGD, views: int, charged: Sequence[Component]
) -> MechanismAudit:
    """Add to an audit of the step what workers that start, and whatever else is charged, show.

    `charged` is the whole plan: a warm-up and paid counts are audited where it has them.
    """
    warmups = [c.mechanism for c in charged if c.name == WARMUP]
    path = WorkerStart(min(views, _MOST_VIEWS), warmup=bool(warmups))
    trials = FEWEST_TRIALS * len(found.workers)
    started = audit_mechanism(
        dpsgd,
        views=path.views,
        trials=trials,
        workers=found.workers,
        delta=found.delta,
        path=path,
    )
    above = any(bound.lower.epsilon > bound.claim for bound in started.bounds)
    unpaid = ", ".join(sorted(path.unpaid)) or "none"
    checks = [replace(check, name=_STARTED + check.name) for check in started.checks]
    checks += [
        Check(_STARTED + "ε shown is within the claim", not above, None, f"{trials} runs each"),
        Check(_STARTED + "all is charged before it is used", not path.unpaid, None, unpaid),
    ]
    for mechanism in warmups:
        assert isinstance(mechanism, Gaussian)  # noqa: S101 - as plans are made
        checks += audit_class_means(path.means, mechanism, found.delta, path.key, found.workers)
    return replace(found, checks=(*found.checks, *checks, *paid_counts(charged)))
