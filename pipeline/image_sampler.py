"""Trained weights that give images: what sampling actors and the model kept in MLflow both do."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from pipeline.building import Recipe, build_denoiser, build_guided, build_sampler
from pipeline.spec import Spec
from privacy.errors import IntegrityBroken, UmbraError
from synth.place import Place
from synth.samplers import Denoise, at_precision, chosen_batch
from synth.shards import to_uint8

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
        self, recipe: Spec | Recipe, weights: Place, device: torch.device | str = "cpu"
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
