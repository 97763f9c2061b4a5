"""DPDM: a diffusion model trained by DP-SGD with noise multiplicity K (Dockhorn et al. 2023).

Where there is a warm-up, one Gaussian mechanism releases noisy class means first, on which the
network is trained for free.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from privacy.accounting import accountant
from privacy.accounting.base import round_up
from privacy.accounting.calibrate import noise_multiplier
from privacy.errors import InvalidRequest
from privacy.ledger.records import Component
from privacy.mechanisms import Gaussian, SubsampledGaussian
from synth.methods import base
from synth.settings import ModelSettings, NetworkSettings, TrainSettings

if TYPE_CHECKING:
    from torch import Tensor

    from privacy.collective import Collective
    from privacy.dp_sgd import DPSGD
    from privacy.gradients.base import GradientEngine
    from synth.preconditioning import Denoiser
    from synth.records import Records
    from synth.storage import StoragePath
    from synth.training import Training

WARMUP = "warmup"
PRIVATE = "dp-sgd"

_LEAST_BLOCKS = 50  # in which the steps of a training are charged
_GIB = 2**30
# Of a micro-batch, where the spec says nothing of memory: small beside torch itself on a CPU; a GPU
# that has less takes fewer records at a time by itself.
_MICRO_BATCH_GIB = {"cpu": 1.0, "cuda": 8.0}


class Diffusion(base.Method):
    """DP-SGD on a preconditioned U-Net, after a warm-up if the spec asks for one."""

    name = "diffusion"
    sections = ("model", "train")

    def __init__(
        self,
        records: int,
        facts: base.PublicFacts,
        clip_norm: float,
        resources: base.WorkerResources,
        *,
        model: ModelSettings,
        train: TrainSettings,
    ) -> None:
        self._records, self._facts, self._clip_norm = records, facts, clip_norm
        self._resources, self._model, self.train = resources, model, train

    def components(
        self, epsilon: float, delta: float, calibration: Literal["rdp", "prv"]
    ) -> tuple[Component, ...]:
        """Calibrate σ of DP-SGD to what the warm-up leaves; see `Method.components`."""
        fixed: tuple[Component, ...] = ()
        if self.train.warmup is not None:
            release = Gaussian(self.train.warmup.noise_multiplier)
            spent = accountant(calibration).epsilon([release], delta)
            if spent >= epsilon:
                raise InvalidRequest(
                    f"the warm-up alone spends ε = {round_up(spent)} at δ = {delta:g} "
                    f"({calibration}), expected less than privacy.epsilon = {epsilon:g}. Raise "
                    f"train.warmup.noise_multiplier (now {release.noise_multiplier:g}) or leave "
                    "the warm-up out."
                )
            fixed = (Component(WARMUP, release),)
        q, T = self.train.schedule(self._records)
        others = [component.mechanism for component in fixed]
        sigma = noise_multiplier(epsilon, delta, q, T, fixed=others, accountant=calibration)
        return (*fixed, Component(PRIVATE, SubsampledGaussian(q, sigma, T)))

    def extent(self, components: Sequence[Component]) -> base.Extent:
        """Return q, T, B = q·N, K, σ and C, and T·B·K views; see `Method.extent`."""
        sgd, K, warmup = _dp_sgd(components), self.train.views, self.train.warmup
        batch = sgd.sampling_probability * self._records
        return base.Extent(
            numbers={
                "sampling_probability": sgd.sampling_probability,
                "steps": sgd.steps,
                "expected_batch": batch,
                "views": K,
                "noise_multiplier": sgd.noise_multiplier,
                "clip_norm": self._clip_norm,
            },
            views=sgd.steps * batch * K,
            steps=sgd.steps + (warmup.steps if warmup else 0),
            # With more workers than records in a batch some would be idle.
            max_workers=max(1, int(batch)),
        )

    def workload(self, denoiser: "Denoiser") -> base.Workload:
        """Return the gradient engine and what it holds at a time; see `Method.workload`."""
        engine, micro_batch = self.engine().name, self.micro_batch(denoiser)
        records = 1 if engine == "record" else micro_batch
        return base.Workload(engine, micro_batch, records * self.train.views)

    def fit(
        self,
        records: "Records",
        components: Sequence[Component],
        attempt: base.Attempt,
        meter: base.Meter,
        checkpoints: "StoragePath",
        collective: "Collective | None" = None,
        on_progress: base.OnProgress = lambda component, done, total: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> "dict[str, Tensor]":
        """Train to the end of the reservation and return the averaged weights; see `Method.fit`."""
        from privacy.collective import SingleProcess
        from synth.training import Trainer

        denoiser, workers = self.denoiser(self._facts, self._model), collective or SingleProcess()
        training = self.training(components, denoiser)
        denoiser = denoiser.to(records.values.device)
        trainer = Trainer(
            training, denoiser, records, attempt, meter, checkpoints, workers, on_progress, stopping
        )
        return trainer.run()

    @staticmethod
    def denoiser(facts: base.PublicFacts, model: ModelSettings) -> "Denoiser":
        """Return the preconditioned U-Net; see `Method.denoiser`."""
        from synth.preconditioning import PRECONDITIONINGS, Denoiser
        from synth.unet import UNet, UNetConfig

        shape = {name: getattr(model, name) for name in NetworkSettings.model_fields}
        network = UNet(UNetConfig(**vars(facts), **shape))
        return Denoiser(network, PRECONDITIONINGS[model.config](**model.constants()))

    def describe(self) -> str:
        """Return the clause for the data set card."""
        return (
            f"DPDM: a {self._model.config.upper()} diffusion model trained by DP-SGD with noise "
            f"multiplicity K = {self.train.views}"
        )

    def dpsgd(self, components: Sequence[Component]) -> "DPSGD":
        """Return the mechanism of every step that was reserved."""
        from privacy.dp_sgd import DPSGD

        sgd = _dp_sgd(components)
        return DPSGD(self._records, sgd.sampling_probability, sgd.noise_multiplier, self._clip_norm)

    def training(self, components: Sequence[Component], denoiser: "Denoiser") -> "Training":
        """Return the settings of `synth.training` for what was reserved."""
        from synth.training import Training

        steps = _dp_sgd(components).steps
        # A crash forfeits the rest of a block.
        block = min(self.train.charge_block, max(1, steps // _LEAST_BLOCKS))
        return Training(
            dpsgd=self.dpsgd(components),
            steps=steps,
            classes=self._facts.classes,
            label_dropout=self._model.label_dropout,
            micro_batch=self.micro_batch(denoiser),
            settings=self._reserved_settings(components).model_copy(update={"charge_block": block}),
        )

    def _reserved_settings(self, components: Sequence[Component]) -> TrainSettings:
        """Return the settings with the warm-up's σ that was reserved, not the spec's."""
        reserved = next((c.mechanism for c in components if c.name == WARMUP), None)
        warmup = self.train.warmup
        if (reserved is None) != (warmup is None):
            raise InvalidRequest("the spec and the reservation do not agree on a warm-up")
        if not isinstance(reserved, Gaussian) or warmup is None:
            return self.train
        warmup = warmup.model_copy(update={"noise_multiplier": reserved.noise_multiplier})
        return self.train.model_copy(update={"warmup": warmup})

    def engine(self) -> "GradientEngine":
        """Return the engine that training takes; it has no influence on what is computed."""
        from privacy.gradients import choose

        device_type = self._resources.device_type
        return choose(self._facts.size**2, self.train.views, device_type, self.train.precision)

    def micro_batch(self, denoiser: "Denoiser") -> int:
        """Return the records in memory at a time: the spec's number, or as many as fit."""
        from privacy.gradients import memory

        own, workers = self.train.micro_batch, self._resources.workers
        if self._resources.device_type == "cpu":
            return own or self._fitting(denoiser)
        # A GPU takes micro-batches of one size, filled up with empty rows: never larger than a
        # worker's batch and, where the spec leaves it open, a whole number of them in a large one.
        largest = memory.largest_batch(self.train.batch / workers, -(-self._records // workers))
        return (
            min(own, largest)
            if own
            else memory.balanced_microbatch(self._fitting(denoiser), largest)
        )

    def _fitting(self, denoiser: "Denoiser") -> int:
        """Return the records that half of a worker's memory holds, up to enough work at a time."""
        from privacy.gradients.memory import micro_batch
        from synth.preconditioning import example_inputs

        device_type, memory = self._resources.device_type, self._resources.memory_gib
        gib = memory / 2 if memory else _MICRO_BATCH_GIB[device_type]
        one = example_inputs(1, self._facts.channels, self._facts.size)
        pixels = self._facts.size**2
        return micro_batch(denoiser, one, self.train.views, pixels, device_type, int(gib * _GIB))


def _dp_sgd(components: Sequence[Component]) -> SubsampledGaussian:
    mechanism = next(c.mechanism for c in components if c.name == PRIVATE)
    assert isinstance(mechanism, SubsampledGaussian)  # noqa: S101
    return mechanism
