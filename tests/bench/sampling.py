"""The shipped Churn sampler beside a plain eager loop in float32."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from synth.denoisers import Denoiser
from synth.samplers import Churn, guided

from .timing import Case
from .workload import Workload

Draw = Callable[[], Tensor]

_TOLERANCE = 1e-3  # relative, float32 against a float64 state


@torch.no_grad()
def plain_churn(denoiser: Denoiser, labels: Tensor, churn: Churn, draw: Draw) -> Tensor:
    """Return what Karras et al. 2022, algorithm 2, gives, written out in float32."""
    x = churn.sigma_max * draw()
    for sigma, lower in pairwise([*churn.sigmas, 0.0]):
        gamma = 0.0
        if churn.S_min <= sigma <= churn.S_max:
            gamma = min(churn.S_churn / churn.steps, math.sqrt(2) - 1)
        raised = sigma * (1 + gamma)
        if gamma > 0:
            x = x + math.sqrt(raised**2 - sigma**2) * churn.S_noise * draw()
        slope = (x - denoiser(x, torch.full((len(x),), raised), labels)) / raised
        euler = x + (lower - raised) * slope
        if lower > 0:
            end = (euler - denoiser(euler, torch.full((len(x),), lower), labels)) / lower
            euler = x + (lower - raised) * (slope + end) / 2
        x = euler
    return x


def sampling_cases(workload: Workload) -> tuple[list[Case], list[str]]:
    """Return the plain loop and the shipped sampler, on the same labels.

    Raises:
        AssertionError: from the same draws they make other images.
    """
    size, channels = workload.network.size, workload.network.channels
    labels = torch.arange(workload.sampled) % 10
    denoiser = workload.denoiser()
    denoise, churn = guided(denoiser), Churn(steps=workload.nfe_steps)
    shape = (len(labels), channels, size, size)

    def shipped(seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return churn.sample(denoise, labels, shape[1:], generator)

    def plain() -> Tensor:
        return plain_churn(denoiser, labels, churn, lambda: torch.randn(shape))

    same = torch.Generator().manual_seed(0)
    images = plain_churn(
        denoiser,
        labels,
        churn,
        lambda: torch.randn(shape, generator=same, dtype=torch.float64).float(),
    )
    difference = float((images - shipped()).abs().max() / images.abs().max())
    if not difference < _TOLERANCE:
        raise AssertionError(f"the two samplers' images are {difference:.1e} apart")
    notes = [
        f"{len(labels)} images, {churn.nfe} evaluations of the network each, w = 0.",
        "The shipped sampler keeps its state in float64; from the same draws the same images.",
    ]
    return [Case("plain eager float32 loop", plain), Case("Churn as shipped", shipped)], notes
