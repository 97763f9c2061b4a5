"""The private training loop: blocks of charged steps, Adam, moving average, checkpoints.

Algorithm 4 of Dockhorn et al. 2023. The loop never runs a step that is not charged, and never
writes, returns or reports anything that was computed from records without noise.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from privacy.collective import Collective, SingleProcess
from privacy.dp_sgd import DPSGD, PrivateGradient
from privacy.errors import InvalidRequest, UmbraError
from privacy.gradients import choose
from privacy.poisson import PoissonSampler
from privacy.validation import positive_int
from synth.attempt import Attempt, Meter
from synth.checkpoint import Checkpoint, keep_last, newest, save
from synth.ema import EMA, cosine, load_trained, trainable, trained_state
from synth.loss import DenoisingLoss
from synth.methods.base import OnProgress
from synth.methods.diffusion import PRIVATE, WARMUP
from synth.preconditioning import Denoiser
from synth.records import NoisedViews, Records
from synth.settings import TrainSettings
from synth.storage import StoragePath
from synth.warmup import release_class_means, train_on_means

_KEPT = 2  # checkpoints: the last, and one before it should the last be damaged


@dataclass(frozen=True)
class Training:
    """What is public about a training.

    Raises:
        InvalidRequest: a count is below 1, or the label dropout is not in [0, 1], before anything
            is charged.
    """

    dpsgd: DPSGD
    steps: int  # T, the reservation's; the charged steps of all attempts never exceed it
    classes: int  # also the index of "no label"
    label_dropout: float  # probability that a record's label is dropped
    micro_batch: int  # records in memory at a time
    settings: TrainSettings  # but for its length and batch: those of the reservation hold

    def __post_init__(self) -> None:
        for name in ("steps", "classes", "micro_batch"):
            positive_int(name, getattr(self, name))
        if not 0 <= self.label_dropout <= 1:
            raise InvalidRequest(f"label_dropout must lie in [0, 1], found {self.label_dropout}")


@dataclass(eq=False)
class Trainer:
    """One worker's part in one attempt; `run` ends when the reservation's steps are used up.

    The fields are those of `Method.fit`. No record is touched before `run`.

    Raises:
        InvalidRequest: the number of records is not the one that the mechanism states.
    """

    training: Training
    denoiser: Denoiser  # with the same initial weights on every worker; trained in place
    records: Records
    attempt: Attempt
    meter: Meter
    checkpoints: StoragePath
    collective: Collective = field(default_factory=SingleProcess)
    on_progress: OnProgress = lambda phase, done, total: None

    def __post_init__(self) -> None:
        training, denoiser, attempt = self.training, self.denoiser, self.attempt
        records, images, dpsgd = self.records, self.records.images, self.training.dpsgd
        if len(records) != dpsgd.records:
            raise InvalidRequest(
                f"the mechanism is stated for {dpsgd.records} records, found {len(records)}; "
                "declare the number that the source holds"
            )
        settings, of = training.settings, denoiser.preconditioning
        self._trainable = trainable(denoiser)
        self._ema = EMA(denoiser, settings.ema)
        self._optimizer = torch.optim.Adam(self._trainable.values(), lr=settings.learning_rate)
        self._loss = DenoisingLoss(of, settings.precision)
        dropout, null = training.label_dropout, training.classes
        self._views = NoisedViews(of, settings.views, dropout, null, attempt.key, attempt.number)
        self._noise = attempt.noise()
        masks = PoissonSampler(attempt.key, attempt.number, dpsgd.sampling_probability)
        pixels, device_type = images.shape[2:].numel(), images.device.type
        engine = choose(pixels, settings.views, device_type, settings.precision)
        self._private_gradient = PrivateGradient(
            dpsgd, masks, self._noise, engine, self.collective, training.micro_batch
        )
        # Every worker has all records and takes every size-th; which, changes nothing in the sums.
        self._owned = np.arange(self.collective.rank, len(records), self.collective.size)
        self._step = self._saved = 0
        self._head = ""

    def run(self) -> dict[str, Tensor]:
        """Train to the end of the reservation and return the weights, trained ones averaged.

        Raises, beside what `Method.fit` does:
            InvalidRequest: this attempt has run before; masks must be fresh.
            UmbraError: the workers do not see the same checkpoints, or crashes forfeited every
                reserved step.
        """
        if not self._restore():
            self._warm_up()
        while (block := self._charge_block()) > 0:
            for _ in range(block):
                self._take_step()
            if self._step - self._saved >= self.training.settings.checkpoint_every:
                self._save()
        if self._step > self._saved:
            self._save()
        if self._step == 0:
            raise UmbraError(
                "every reserved step was charged and lost in a crash, so there is no trained model "
                "to release; submit a new run"
            )
        return {**self.denoiser.state_dict(), **self._ema.state_dict()}

    def _restore(self) -> bool:
        """Go on from the newest sound checkpoint; say whether there is one."""
        found = newest(self.checkpoints).checkpoint
        step = -1 if found is None else found.step
        if self.collective.broadcast_from_rank0(step) != step:
            raise UmbraError(
                "the workers found different checkpoints; put the run's folder on storage that "
                "all of them share"
            )
        if found is None:
            return False
        if found.attempt >= self.attempt.number:
            raise InvalidRequest(
                f"attempt {self.attempt.number} cannot go on from a checkpoint of attempt "
                f"{found.attempt}: masks must be fresh; begin a new attempt"
            )
        load_trained(self.denoiser, found.model)
        self._ema.load_state_dict(dict(found.ema))
        self._optimizer.load_state_dict(dict(found.optimizer))
        self._step = self._saved = found.step
        return True

    def _warm_up(self) -> None:
        training, records = self.training, self.records
        warmup = training.settings.warmup
        if warmup is None:
            return
        first = self.collective.rank == 0
        if not self.collective.broadcast_from_rank0(self.meter.remaining(WARMUP) if first else 0):
            # An attempt that died after the charge has forfeited the query.
            return
        means = torch.zeros(training.classes, *records.images.shape[1:])
        if first:
            self._head = self.meter.charge(WARMUP, 1)
            means = release_class_means(records, training.classes, warmup, self._noise)
        means = self.collective.sum({"means": means.to(records.images.device)})["means"].float()
        report, total = self.on_progress, warmup.steps
        train_on_means(
            self.denoiser,
            means,
            warmup,
            training.label_dropout,
            self.attempt.generator(),
            lambda done: report(WARMUP, done, total),
        )
        self._ema = EMA(self.denoiser, training.settings.ema)
        self._save()

    def _charge_block(self) -> int:
        """Charge the next block and return its length; 0 when the reservation is used up."""
        block = 0
        if self.collective.rank == 0:
            block = min(self.meter.remaining(PRIVATE), self.training.settings.charge_block)
            if block > 0:
                self._head = self.meter.charge(PRIVATE, block)
        # The others hear of the block when it is paid for and not before.
        return self.collective.broadcast_from_rank0(block)

    def _take_step(self) -> None:
        """Take one charged step of DP-SGD."""
        training, step = self.training, self._step
        gather = self._views.for_step(step, self.records, self._owned)
        gradient = self._private_gradient(step, self.denoiser, self._loss, self._owned, gather)
        for name, parameter in self._trainable.items():
            parameter.grad = gradient[name]
        for group in self._optimizer.param_groups:
            group["lr"] = cosine(training.settings.learning_rate, step, training.steps)
        self._optimizer.step()
        self._ema.update(self.denoiser)
        self._step += 1
        self.on_progress(PRIVATE, self._step, training.steps)

    def _save(self) -> None:
        """Write a checkpoint; it holds nothing that noise or masks could be drawn from again."""
        self._saved = self._step
        if self.collective.rank != 0:
            return
        checkpoint = Checkpoint(
            self._step,
            self.attempt.number,
            PRIVATE if self._step else WARMUP,
            trained_state(self.denoiser),
            self._ema.state_dict(),
            self._optimizer.state_dict(),
            self._head,
        )
        save(self.checkpoints, checkpoint)
        keep_last(self.checkpoints, _KEPT)
