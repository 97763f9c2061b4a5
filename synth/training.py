"""The private training loop: blocks of charged steps, Adam, moving average, checkpoints.

Algorithm 4 of Dockhorn et al. 2023. The loop never runs a step that is not charged, and never
writes, returns or reports anything that was computed from records without noise.

A warm-up may come first: one Gaussian mechanism releases the clipped sum of every class. Divided by
the public number N / classes they are rough class means, and training on those is post-processing:
free, however long it takes. DP-SGD then starts from a network that knows what a class looks like,
so that its budget goes into the differences within a class.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from privacy import class_sums
from privacy.collective import Collective, SingleProcess
from privacy.dp_sgd import DPSGD, PrivateGradient
from privacy.errors import InvalidRequest, UmbraError
from privacy.gradients import base, choose
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler
from privacy.validation import positive_int
from synth.checkpoint import Checkpoint, keep_last, resume_point, save
from synth.methods.base import Attempt, Meter, OnProgress, Stopped
from synth.methods.diffusion import PRIVATE, WARMUP
from synth.preconditioning import Denoiser, DenoisingLoss, draw_views, drop_labels
from synth.records import NoisedViews, Records
from synth.settings import TrainSettings, WarmupSettings
from synth.storage import StoragePath

_STOP = -1  # in place of a block's length
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
    settings: (
        TrainSettings  # but for its length, its batch and the warm-up's σ: those reserved hold
    )

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
    stopping: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        training, denoiser, attempt = self.training, self.denoiser, self.attempt
        records, dpsgd = self.records, self.training.dpsgd
        if records.total != dpsgd.records:
            raise InvalidRequest(
                f"the mechanism is stated for {dpsgd.records} records, found {records.total}; "
                "declare the number that the source holds"
            )
        settings, of = training.settings, denoiser.preconditioning
        self._trainable = base.trainable(denoiser)
        self._ema = EMA(denoiser, settings.ema)
        self._optimizer = torch.optim.Adam(self._trainable.values(), lr=settings.learning_rate)
        self._loss = DenoisingLoss(of, settings.precision)
        dropout, null = training.label_dropout, training.classes
        self._views = NoisedViews(of, settings.views, dropout, null, attempt.key, attempt.number)
        self._noise = attempt.noise()
        masks = PoissonSampler(attempt.key, attempt.number, dpsgd.sampling_probability)
        pixels, device_type = records.shape[1:].numel(), records.values.device.type
        engine = choose(pixels, settings.views, device_type, settings.precision)
        self._private_gradient = PrivateGradient(
            dpsgd, masks, self._noise, engine, self.collective, training.micro_batch
        )
        self._step = self._saved = 0
        self._head, self._payer = "", attempt.number

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
            for step in range(self._step, self._step + block):
                # No method of its own: every frame on the way to a gradient is read by whoever
                # follows one.
                gather, ids = self._views.for_step(step, self.records), self.records.ids
                gradient = self._private_gradient(step, self.denoiser, self._loss, ids, gather)
                self._descend(gradient)
                if self.stopping():
                    # Whoever asked may lose patience before the block ends.
                    self._save()
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
        number, origin = self.attempt.number, self.attempt.origin
        found = resume_point(self.checkpoints, number, origin, self.collective)
        if found is None:
            return False
        load_trained(self.denoiser, found.model)
        if "means" in found.optimizer:
            # A stop came in the warm-up. What is left of it is free, and no step of this attempt's:
            # a checkpoint goes on naming the attempt that paid.
            self._head, self._payer = found.ledger_head, found.attempt
            means = found.optimizer["means"].to(self.records.values.device)
            self._learn_means(means, found.optimizer["taken"])
            return True
        self._ema.load_state_dict(dict(found.ema))
        self._optimizer.load_state_dict(dict(found.optimizer))
        self._step = self._saved = found.step
        return True

    def _warm_up(self) -> None:
        training, records = self.training, self.records
        warmup = training.settings.warmup
        if warmup is None:
            return
        paid = 0
        if self.collective.rank == 0 and self.meter.remaining(WARMUP):
            self._head = self.meter.charge(WARMUP, 1)
            paid = 1
        # The others hear of the charge when it is paid for and not before.
        if not self.collective.broadcast_from_rank0(paid):
            # An attempt that died after the charge has forfeited the query.
            return
        means = release_class_means(records, training.classes, warmup, self._noise, self.collective)
        self._learn_means(means, 0)

    def _learn_means(self, means: Tensor, first: int) -> None:
        """Train on released class means from step `first` of the warm-up to its end or a stop."""
        warmup, report = self.training.settings.warmup, self.on_progress
        if warmup is None:
            return
        total, dropout = warmup.steps, self.training.label_dropout
        taken = train_on_means(
            self.denoiser,
            means,
            warmup,
            dropout,
            self.attempt.generator(),
            lambda done: report(WARMUP, done, total),
            self.stopping,
            first,
        )
        self._ema = EMA(self.denoiser, self.training.settings.ema)
        self._save({"means": means, "taken": taken} if taken < total else None)

    def _charge_block(self) -> int:
        """Charge the next block and return its length; 0 when the reservation is used up.

        Raises:
            Stopped: that was asked for. It happens between two blocks, when all that was charged is
                drawn: nothing that was charged is ever given back.
        """
        block = 0
        if self.collective.rank == 0:
            block = min(self.meter.remaining(PRIVATE), self.training.settings.charge_block)
            if block > 0 and self.stopping():
                block = _STOP
            if block > 0:
                self._head = self.meter.charge(PRIVATE, block)
                self._payer = self.attempt.number
        # The others hear of the block when it is paid for and not before.
        block = self.collective.broadcast_from_rank0(block)
        if block == _STOP:
            if self._step > self._saved:
                self._save()
            raise Stopped(f"stopped as asked, after step {self._step} of {self.training.steps}")
        return block

    def _descend(self, gradient: dict[str, Tensor]) -> None:
        """Take the noised gradient of one charged step into the weights and their average."""
        training = self.training
        for name, parameter in self._trainable.items():
            parameter.grad = gradient[name]
        for group in self._optimizer.param_groups:
            group["lr"] = cosine(training.settings.learning_rate, self._step, training.steps)
        self._optimizer.step()
        self._ema.update(self.denoiser)
        self._step += 1
        self.on_progress(PRIVATE, self._step, training.steps)

    def _save(self, left: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint; it holds nothing that noise or masks could be drawn from again.

        `left` is what the rest of a warm-up needs; there is no optimizer yet to keep.
        """
        self._saved = self._step
        if self.collective.rank != 0:
            return
        checkpoint = Checkpoint(
            self._step,
            self._payer,
            PRIVATE if self._step else WARMUP,
            trained_state(self.denoiser),
            self._ema.state_dict(),
            left or self._optimizer.state_dict(),
            self._head,
        )
        save(self.checkpoints, checkpoint, self.attempt.origin)
        keep_last(self.checkpoints, _KEPT)


def release_class_means(
    records: Records,
    classes: int,
    warmup: WarmupSettings,
    noise: SecureGaussian,
    collective: Collective,
) -> Tensor:
    """Query the noisy class means over all workers, float32 [classes, C, H, W] in [-1, 1].

    The caller has charged one Gaussian mechanism of `warmup.noise_multiplier` before.
    """
    sums = class_sums.noisy_class_sums(
        records.values.permute(0, 3, 1, 2),
        records.labels,
        classes,
        clip_norm=warmup.clip_norm,
        noise_multiplier=warmup.noise_multiplier,
        noise=noise,
        collective=collective,
    )
    # N, which makes the divisor, is public under the zero-out relation.
    means = class_sums.class_means(sums, records.total / classes)
    return means.clamp(0, 1).mul(2).sub(1).float()


def train_on_means(
    denoiser: Denoiser,
    means: Tensor,
    warmup: WarmupSettings,
    label_dropout: float,
    generator: torch.Generator,
    on_progress: Callable[[int], None] = lambda done: None,
    stopping: Callable[[], bool] = lambda: False,
    first: int = 0,
) -> int:
    """Train `denoiser` in place on released class means [classes, C, H, W]; opens no records.

    It begins at step `first`, ends early where `stopping` returns True, and returns how many of
    the warm-up's steps are taken by then.
    """
    loss = DenoisingLoss(denoiser.preconditioning)
    optimizer = torch.optim.Adam(base.trainable(denoiser).values(), lr=warmup.learning_rate)
    falling = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1 - first / max(1, warmup.steps), 0.0, total_iters=warmup.steps - first
    )
    classes = len(means)
    for step in range(first, warmup.steps):
        if stopping():
            return step
        labels = torch.randint(classes, (warmup.batch,), generator=generator).to(means.device)
        images = means[labels]
        sigma, noise = draw_views(denoiser.preconditioning, images, 1, generator)
        u = torch.rand(warmup.batch, generator=generator)
        labels = drop_labels(labels, classes, label_dropout, u)
        optimizer.zero_grad()
        # One view each of many images: the loss takes them as it takes many views of one.
        loss(denoiser, images, labels, sigma[:, 0], noise[:, 0]).backward()
        optimizer.step()
        falling.step()
        on_progress(step + 1)
    return warmup.steps


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state dict without its frozen parameters."""
    frozen = dict(model.named_parameters()).keys() - base.trainable(model).keys()
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trained(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `trained_state` returned; raises RuntimeError where it is another model's."""
    frozen = {n: v for n, v in model.state_dict().items() if n not in trained_state(model)}
    model.load_state_dict({**frozen, **state})


class EMA:
    """theta_ema <- decay theta_ema + (1 - decay) theta, kept in float32.

    Args:
        model: its trainable parameters are the average's start.
        decay: in [0, 1).

    Raises:
        InvalidRequest: the decay is not in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise InvalidRequest(f"EMA decay: expected a number in [0, 1), found {decay}")
        self.decay = decay
        # A clone even where the parameters are float32 already: the average must not alias them.
        self._average = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in base.trainable(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present parameters into the average; once after every step."""
        latest = [value.to(torch.float32) for value in base.trainable(model).values()]
        # All at once: launching one operation a parameter takes a GPU longer than the arithmetic.
        torch._foreach_lerp_(list(self._average.values()), latest, 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged parameters by name."""
        return {name: average.clone() for name, average in self._average.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned; raise InvalidRequest where it is another model's."""
        expected = {(name, average.shape) for name, average in self._average.items()}
        found = {(name, tensor.shape) for name, tensor in state.items()}
        if found != expected:
            names = ", ".join(sorted({name for name, _ in found ^ expected}))
            raise InvalidRequest(
                f"averaged weights do not fit the model, expected its own names and shapes; these "
                f"differ: {names}; load the weights of a run with the same network"
            )
        for name, average in self._average.items():
            average.copy_(state[name])


def cosine(peak: float, step: int, steps: int) -> float:
    """Return peak (1 + cos(pi step / steps)) / 2: `peak` at step 0, zero at the end.

    >>> cosine(0.5, step=0, steps=100), cosine(0.5, step=50, steps=100)
    (0.5, 0.25)
    """
    # Late steps of DP-SGD carry as much noise as early ones; small ones at the end average it away.
    return peak * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
