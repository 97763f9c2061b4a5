"""From a spec and trained weights to images: for sampling actors and the model kept in MLflow."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Self, cast

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from pipeline.spec import Spec
from privacy.errors import IntegrityBroken, UmbraError
from synth.data.shards import to_uint8
from synth.inference import at_precision, chosen_batch
from synth.methods import METHODS, method_class
from synth.methods.base import PublicFacts
from synth.preconditioning import Denoiser
from synth.samplers import DIRECT, sampler
from synth.samplers.base import Denoise, Sampler, guided
from synth.settings import ModelSettings, Settings, SynthesizeSettings, one_of
from synth.storage import StoragePath


class ImageFacts(Settings):
    """What is public about the images."""

    size: int
    channels: int
    classes: tuple[str, ...]


class Recipe(Settings):
    """The part of a spec that sampling needs. It names no data source, so it may travel alone."""

    data: ImageFacts
    method: Annotated[str, one_of(METHODS)] = "diffusion"
    model: ModelSettings
    synthesize: SynthesizeSettings
    # Of the weights that belong to it: see `weights_mark`. Recipes of older versions have none.
    mark: dict[str, str | bool] | None = None

    @classmethod
    def of(cls, spec: Spec, mark: dict[str, str | bool] | None = None) -> Self:
        """Return the recipe within a spec, for the weights with this mark."""
        facts = {name: getattr(spec.data, name) for name in ImageFacts.model_fields}
        rest = {name: getattr(spec, name) for name in ("method", "model", "synthesize")}
        return cls(data=ImageFacts(**facts), **rest, mark=mark)


def build_denoiser(spec: Spec | Recipe) -> Denoiser:
    """Return D(x; σ, y) with fresh weights, on the CPU.

    Raises:
        InvalidRequest: the numbers do not make a network.
    """
    facts = PublicFacts(spec.data.size, spec.data.channels, len(spec.data.classes))
    return method_class(spec.method).denoiser(facts, spec.model)


def build_sampler(spec: Spec | Recipe) -> Sampler:
    """Return the sampler with the spec's noise levels."""
    return sampler(spec.synthesize.sampler, **spec.synthesize.sampler_settings())


def build_guided(spec: Spec | Recipe, denoiser: Denoiser) -> Denoise:
    """Return the function that a sampler takes: the denoiser under the spec's guidance w."""
    return guided(denoiser, spec.synthesize.guidance, null=len(spec.data.classes))


_DIRECT_BATCH = 2000  # images at a time that a model draws itself: a pool to pick labels from

# Called with the number of images that are done: whole ones, and parts of those in progress.
OnImages = Callable[[float], None]


class ImageSampler:
    """Draw images by a spec's sampler, guidance, precision and batch.

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
        data, settings = recipe.data, recipe.synthesize
        self._device = torch.device(device)
        self._shape = (data.channels, data.size, data.size)
        self._sampler = None if settings.sampler == DIRECT else build_sampler(recipe)
        self._batch = settings.batch or chosen_batch(
            data.size,
            recipe.model.base,
            settings.precision,
            guided=settings.guidance != 0,
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
        if self._sampler is None:
            self._batch, self._model = settings.batch or _DIRECT_BATCH, cast(Any, denoiser.network)
            return
        ready = at_precision(denoiser, settings.precision, self._device)
        self._denoise = build_guided(recipe, ready)

    def draw(
        self, labels: Tensor, generator: torch.Generator, on_images: OnImages = lambda done: None
    ) -> Iterator[np.ndarray]:
        """Yield images uint8 [b, H, W, C] for the labels [N], batch after batch, in order.

        Args:
            labels: integers, on any device.
            generator: all that is random; the same one gives the same images.
            on_images: called after every evaluation of the network.
        """
        if self._sampler is None:
            yield from self._drawn(labels, generator, on_images)
            return
        evaluations, nfe, solver = 0, self._sampler.nfe, self._sampler

        def denoise(x: Tensor, sigma: float, labels: Tensor) -> Tensor:
            nonlocal evaluations
            denoised = self._denoise(x, sigma, labels)
            evaluations += 1
            on_images(begun + len(x) * evaluations / nfe)
            return denoised

        for begun in range(0, len(labels), self._batch):
            evaluations = 0
            part = labels[begun : begun + self._batch].to(self._device)
            with torch.inference_mode():
                x = solver.sample(denoise, part, self._shape, generator)
            yield to_uint8(x)

    def _drawn(
        self, labels: Tensor, generator: torch.Generator, on_images: OnImages
    ) -> Iterator[np.ndarray]:
        done = 0
        for part in labels.split(self._batch):
            with torch.inference_mode():
                x = self._model.draw(part, generator)
            done += len(part)
            on_images(done)
            yield to_uint8(x)
