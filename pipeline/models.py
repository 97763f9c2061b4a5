"""Trained weights that give images: what sampling actors and the model kept in MLflow both do."""

from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from pipeline.spec import Spec
from privacy.budget import Reservation
from privacy.dp_sgd import DPSGD
from privacy.errors import IntegrityBroken, UmbraError
from privacy.gradients import GradientEngine, choose
from privacy.gradients.memory import balanced_microbatch, largest_batch, micro_batch
from privacy.mechanisms import SubsampledGaussian
from synth.data.shards import to_uint8
from synth.inference import at_precision, chosen_batch
from synth.preconditioning import Denoiser, build_preconditioning
from synth.samplers import sampler
from synth.samplers.base import Denoise, Sampler
from synth.samplers.guidance import guided
from synth.settings import ModelSettings, Settings, SynthesizeSettings
from synth.storage import StoragePath
from synth.training import PRIVATE, Training
from synth.unet import UNet, UNetConfig
from synth.warmup import Warmup

_GIB = 2**30
# Of a micro-batch, where the spec says nothing of memory: small beside torch itself on a CPU; a GPU
# that has less takes fewer records at a time by itself.
_MICRO_BATCH_GIB = {"cpu": 1.0, "cuda": 8.0}


class ImageFacts(Settings):
    """What is public about the images."""

    size: int
    channels: int
    classes: tuple[str, ...]


class Recipe(Settings):
    """The part of a spec that sampling needs. It names no data source, so it may travel alone."""

    data: ImageFacts
    model: ModelSettings
    synthesize: SynthesizeSettings

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """The recipe within a spec."""
        data = spec.data
        return cls(
            data=ImageFacts(size=data.size, channels=data.channels, classes=data.classes),
            model=spec.model,
            synthesize=spec.synthesize,
        )


def build_denoiser(spec: Spec | Recipe) -> Denoiser:
    """D(x; σ, y) with fresh weights, on the CPU.

    Its state dict names the network's parameters `network.…`; the label `len(classes)` is null.

    Raises:
        InvalidRequest: the numbers do not make a network.
    """
    data, model = spec.data, spec.model
    config = UNetConfig(
        size=data.size,
        channels=data.channels,
        base=model.base,
        multipliers=model.multipliers,
        blocks=model.blocks,
        attention=model.attention,
        classes=len(data.classes),
    )
    return Denoiser(UNet(config), build_preconditioning(model.config, **model.constants()))


def build_sampler(spec: Spec | Recipe) -> Sampler:
    """The sampler with the spec's noise levels.

    Raises:
        InvalidRequest: the numbers do not make a schedule.
    """
    return sampler(spec.synthesize.sampler, **spec.synthesize.sampler_settings())


def build_guided(spec: Spec | Recipe, denoiser: Denoiser) -> Denoise:
    """The handle a sampler takes: the denoiser under the spec's guidance w."""
    return guided(denoiser, spec.synthesize.guidance, null=len(spec.data.classes))


def build_training(spec: Spec, reservation: Reservation) -> Training:
    """Return the settings of `synth.training`: what was reserved, as the spec wants it trained.

    The mechanism is the reservation's: another version of a library might calibrate another σ
    from the same spec, and then a resumed run would be charged for one and take steps with another.
    """
    train, mechanism = spec.train, reservation.component(PRIVATE).mechanism
    assert isinstance(mechanism, SubsampledGaussian)  # noqa: S101
    return Training(
        dpsgd=DPSGD(
            reservation.records,
            mechanism.sampling_probability,
            mechanism.noise_multiplier,
            spec.privacy.clip_norm,
        ),
        steps=mechanism.steps,
        views=train.views,
        learning_rate=train.learning_rate,
        ema=train.ema,
        label_dropout=spec.model.label_dropout,
        classes=len(spec.data.classes),
        charge_block=train.charge_block,
        checkpoint_every=train.checkpoint_every,
        micro_batch=micro_batch_of(spec),
        precision=train.precision,
        warmup=Warmup(**train.warmup.model_dump()) if train.warmup else None,
    )


def gradient_engine(spec: Spec, records: float) -> GradientEngine:
    """The engine that training takes for this spec; it has no influence on what is computed.

    Args:
        spec: the spec.
        records: expected over all steps and workers; how many workers "auto" is, is not known yet.
    """
    workers = 1 if spec.resources.workers == "auto" else spec.resources.workers
    return choose(
        spec.data.size**2,
        spec.train.views,
        _device_type(spec),
        spec.train.precision,
        records / workers,
    )


def micro_batch_of(spec: Spec) -> int:
    """The records in memory at a time: the spec's, or as many as fit.

    A GPU takes a micro-batch of one size at a time, filled up with empty rows: so there it is never
    larger than a worker's batch, and where the spec leaves it open, a whole number of them makes a
    large batch.
    """
    own = spec.train.micro_batch
    if _device_type(spec) == "cpu":
        return own or _fitting(spec)
    largest = _largest_batch(spec)
    return min(own, largest) if own else balanced_microbatch(_fitting(spec), largest)


def _largest_batch(spec: Spec) -> int:
    """What hardly a batch of a worker exceeds; how many workers "auto" is, is not known yet."""
    workers = 1 if spec.resources.workers == "auto" else spec.resources.workers
    return largest_batch(spec.train.batch / workers, -(-spec.data.records // workers))


def _fitting(spec: Spec) -> int:
    """The records that half of a worker's memory holds, and that make no more than enough work."""
    device_type, memory = _device_type(spec), spec.resources.memory_gib_per_worker
    gib = memory / 2 if memory else _MICRO_BATCH_GIB[device_type]
    with torch.device("meta"):
        denoiser, one = build_denoiser(spec), views_of(spec, 1)
    return micro_batch(
        denoiser, one, spec.train.views, spec.data.size**2, device_type, int(gib * _GIB)
    )


def views_of(spec: Spec, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, noise levels and labels of `views` copies, all zero, on the device in force."""
    x = torch.zeros(views, spec.data.channels, spec.data.size, spec.data.size)
    return x, torch.ones(views), torch.zeros(views, dtype=torch.long)


def _device_type(spec: Spec) -> str:
    return "cuda" if spec.resources.gpus_per_worker > 0 else "cpu"


# Told the number of images whose work is done: whole ones, and parts of those at work.
OnImages = Callable[[float], None]


class ImageSampler:
    """Samples as a spec says: its sampler, guidance, precision and batch.

    Args:
        recipe: what to sample, and how.
        weights: file of the denoiser's weights.
        device: where the network runs.

    Raises:
        IntegrityBroken: the weights cannot be read, or are of another network.
    """

    def __init__(
        self, recipe: Spec | Recipe, weights: StoragePath, device: torch.device | str = "cpu"
    ) -> None:
        data, wanted = recipe.data, recipe.synthesize
        self._device = torch.device(device)
        self._shape = (data.channels, data.size, data.size)
        self._sampler = build_sampler(recipe)
        self._batch = wanted.batch or chosen_batch(
            data.size,
            recipe.model.base,
            wanted.precision,
            guided=wanted.guidance != 0,
            on_gpu=self._device.type == "cuda",
        )
        denoiser = build_denoiser(recipe)
        try:
            denoiser.load_state_dict(load(weights.read_bytes()))
        except UmbraError:
            raise
        except Exception as error:
            raise IntegrityBroken(
                f"{weights} is missing, damaged or of another network; restore it from a "
                "backup or submit a new run"
            ) from error
        ready = at_precision(denoiser, wanted.precision, self._device)
        self._denoise = build_guided(recipe, ready)

    def draw(
        self, labels: Tensor, generator: torch.Generator, on_images: OnImages | None = None
    ) -> Iterator[np.ndarray]:
        """Yield images uint8 [b, H, W, C] for the labels [N], batch after batch, in order.

        Args:
            labels: integers, on any device.
            generator: all that is random; the same one gives the same images.
            on_images: called after every evaluation of the network.
        """
        begun = 0
        while len(labels) > begun:
            part = labels[begun : begun + self._batch].to(self._device)
            denoise = self._denoise
            if on_images is not None:
                denoise = self._counted(begun, len(part), on_images)
            with torch.inference_mode():
                x = self._sampler.sample(denoise, part, self._shape, generator)
            yield to_uint8(x)
            begun += len(part)

    def _counted(self, begun: int, images: int, on_images: OnImages) -> Denoise:
        calls = 0

        def denoise(x: Tensor, sigma: float, labels: Tensor) -> Tensor:
            nonlocal calls
            denoised = self._denoise(x, sigma, labels)
            calls += 1
            on_images(begun + images * calls / self._sampler.nfe)
            return denoised

        return denoise
