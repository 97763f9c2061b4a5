"""DPDM: a diffusion model trained by DP-SGD with noise multiplicity K (Dockhorn et al. 2023).

Where there is a warm-up, one Gaussian mechanism releases noisy class means first, on which the
network is trained for free (`synth.warmup`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from privacy.accounting import accountant
from privacy.accounting.base import round_up
from privacy.accounting.calibrate import noise_multiplier
from privacy.errors import InvalidRequest
from privacy.ledger.records import Component
from privacy.mechanisms import Gaussian, SubsampledGaussian
from synth.methods.base import (
    Method,
    OnProgress,
    PrivacyTarget,
    PublicFacts,
    WorkerResources,
    Workload,
)
from synth.settings import ModelSettings, NetworkSettings, TrainSettings

if TYPE_CHECKING:
    from torch import Tensor

    from privacy.collective import Collective
    from privacy.gradients.base import GradientEngine
    from synth.attempt import Attempt, Meter
    from synth.preconditioning import Denoiser
    from synth.records import Records
    from synth.storage import StoragePath
    from synth.training import Training

WARMUP = "warmup"
PRIVATE = "dp-sgd"

_GIB = 2**30
# Of a micro-batch, where the spec says nothing of memory: small beside torch itself on a CPU; a GPU
# that has less takes fewer records at a time by itself.
_MICRO_BATCH_GIB = {"cpu": 1.0, "cuda": 8.0}


class Diffusion(Method):
    """DP-SGD on a preconditioned U-Net, after a warm-up if the spec asks for one."""

    name = "diffusion"
    sections = ("model", "train")

    def __init__(
        self,
        facts: PublicFacts,
        clip_norm: float,
        resources: WorkerResources,
        *,
        model: ModelSettings,
        train: TrainSettings,
    ) -> None:
        self._facts = facts
        self._clip_norm = clip_norm
        self._resources = resources
        self._model = model
        self._train = train
        self._schedule = train.schedule(facts.records)

    def components(self, target: PrivacyTarget) -> tuple[Component, ...]:
        """Calibrate σ of DP-SGD to what the warm-up leaves; see `Method.components`."""
        fixed: tuple[Component, ...] = ()
        if self._train.warmup is not None:
            release = Gaussian(self._train.warmup.noise_multiplier)
            _require_room(release, target)
            fixed = (Component(WARMUP, release),)
        q, T = self._schedule.sampling_probability, self._schedule.steps
        sigma = noise_multiplier(
            target.epsilon,
            target.delta,
            q,
            T,
            fixed=[component.mechanism for component in fixed],
            accountant=target.calibration,
        )
        return (*fixed, Component(PRIVATE, SubsampledGaussian(q, sigma, T)))

    def public_numbers(self, components: Sequence[Component]) -> dict[str, int | float]:
        """Return q, T, q·N, K, σ and C."""
        sgd = _dp_sgd(components)
        return {
            "sampling_probability": sgd.sampling_probability,
            "steps": sgd.steps,
            "expected_batch": sgd.sampling_probability * self._facts.records,
            "views": self._train.views,
            "noise_multiplier": sgd.noise_multiplier,
            "clip_norm": self._clip_norm,
        }

    def workload(self, components: Sequence[Component]) -> Workload:
        """Estimate T·q·N·K views, and the memory of those at work; see `Method.workload`."""
        sgd, views = _dp_sgd(components), self._train.views
        engine, micro_batch = self.engine(), self.micro_batch()
        return Workload(
            views=sgd.steps * sgd.sampling_probability * self._facts.records * views,
            views_at_once=views * (1 if engine.name == "record" else micro_batch),
            engine=engine.name,
            micro_batch=micro_batch,
        )

    def total_steps(self, components: Sequence[Component]) -> int:
        """Return the steps of DP-SGD and those of the warm-up."""
        return _dp_sgd(components).steps + (self._train.warmup.steps if self._train.warmup else 0)

    def max_workers(self, components: Sequence[Component]) -> int:
        """Return the expected number of records in a batch: more workers would be idle."""
        return max(1, int(_dp_sgd(components).sampling_probability * self._facts.records))

    def fit(
        self,
        records: "Records",
        components: Sequence[Component],
        attempt: "Attempt",
        meter: "Meter",
        checkpoints: "StoragePath",
        collective: "Collective | None" = None,
        on_progress: OnProgress = lambda component, done, total: None,
    ) -> "dict[str, Tensor]":
        """Train to the end of the reservation and return the averaged weights; see `Method.fit`."""
        from synth.training import Trainer

        denoiser = self.denoiser(self._facts, self._model).to(records.images.device)
        training = self.training(components)
        return Trainer(
            training, denoiser, records, attempt, meter, checkpoints, collective, on_progress
        ).run()

    @classmethod
    def denoiser(cls, facts: PublicFacts, model: ModelSettings) -> "Denoiser":
        """Return the preconditioned U-Net; the label `facts.classes` is null.

        Raises:
            InvalidRequest: the numbers do not make a network.
        """
        from synth.preconditioning import Denoiser, build_preconditioning
        from synth.unet import UNet, UNetConfig

        config = UNetConfig(
            size=facts.size,
            channels=facts.channels,
            classes=facts.classes,
            **{name: getattr(model, name) for name in NetworkSettings.model_fields},
        )
        return Denoiser(UNet(config), build_preconditioning(model.config, **model.constants()))

    def describe(self) -> str:
        """Return the clause for the data set card."""
        return (
            f"DPDM: a {self._model.config.upper()} diffusion model trained by DP-SGD with noise "
            f"multiplicity K = {self._train.views}"
        )

    def training(self, components: Sequence[Component]) -> "Training":
        """Return the settings of `synth.training` for what was reserved."""
        from privacy.dp_sgd import DPSGD
        from synth.training import Training

        sgd = _dp_sgd(components)
        return Training(
            dpsgd=DPSGD(
                self._facts.records, sgd.sampling_probability, sgd.noise_multiplier, self._clip_norm
            ),
            steps=sgd.steps,
            classes=self._facts.classes,
            label_dropout=self._model.label_dropout,
            micro_batch=self.micro_batch(),
            settings=self._train,
        )

    def engine(self) -> "GradientEngine":
        """Return the engine that training takes; it has no influence on what is computed."""
        from privacy.gradients import choose

        return choose(
            self._facts.size**2,
            self._train.views,
            self._resources.device_type,
            self._train.precision,
        )

    def micro_batch(self) -> int:
        """Return the records in memory at a time: the spec's number, or as many as fit.

        A GPU takes a micro-batch of one size at a time, filled up with empty rows: there it is
        never larger than a worker's batch, and where the spec leaves it open, a whole number of
        them makes a large batch.
        """
        from privacy.gradients.memory import balanced_microbatch, largest_batch

        own, workers = self._train.micro_batch, self._resources.workers
        if self._resources.device_type == "cpu":
            return own or self._fitting()
        largest = largest_batch(self._train.batch / workers, -(-self._facts.records // workers))
        return min(own, largest) if own else balanced_microbatch(self._fitting(), largest)

    def _fitting(self) -> int:
        """Return the records that half of a worker's memory holds, up to enough work at a time."""
        from privacy.gradients.memory import micro_batch
        from synth.preconditioning import example_inputs

        device_type, memory = self._resources.device_type, self._resources.memory_gib
        gib = memory / 2 if memory else _MICRO_BATCH_GIB[device_type]
        denoiser = self.denoiser(self._facts, self._model)
        one = example_inputs(1, self._facts.channels, self._facts.size)
        pixels = self._facts.size**2
        return micro_batch(denoiser, one, self._train.views, pixels, device_type, int(gib * _GIB))


def _dp_sgd(components: Sequence[Component]) -> SubsampledGaussian:
    mechanism = next(c.mechanism for c in components if c.name == PRIVATE)
    assert isinstance(mechanism, SubsampledGaussian)  # noqa: S101
    return mechanism


def _require_room(release: Gaussian, target: PrivacyTarget) -> None:
    """Raise InvalidRequest if the warm-up leaves nothing to DP-SGD."""
    spent = accountant(target.calibration).epsilon([release], target.delta)
    if spent >= target.epsilon:
        raise InvalidRequest(
            f"the warm-up alone spends ε = {round_up(spent)} at δ = {target.delta:g} "
            f"({target.calibration}), expected less than privacy.epsilon = {target.epsilon:g}. "
            f"Raise train.warmup.noise_multiplier (now {release.noise_multiplier:g}) or leave the "
            "warm-up out."
        )
