"""What training and sampling would take: operations, memory and, by a short trial, time.

Everything but the parameter count is an estimate. Nothing here opens data: the trial runs the
network of the spec, untrained, on zeros.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pipeline.spec import Spec
from synth.methods.base import Method

# Weights 4, EMA 4, Adam 8, and sum of clipped gradients and noise in float64, 8 each.
_BYTES_PER_PARAMETER = 32
# A backward pass multiplies every activation twice: once for inputs, once for weights.
_BACKWARD_FACTOR = 3
_TRIAL_SECONDS = 0.1
_TRIAL_VIEWS = 1024


@dataclass(frozen=True)
class Cost:
    """Cost of one run."""

    parameters: int
    views: float  # expected noised copies over the whole training, T·E[B]·K
    flops_per_view: int  # forward and backward
    training_flops: float
    sampling_flops: float  # all images, all evaluations, guidance included
    # Weights, optimiser and the activations that are held at a time; images and the Python, torch
    # and Ray runtimes come on top.
    worker_bytes: int
    gradient_engine: str  # how clipped gradients are computed; has no influence on them
    micro_batch: int  # records at a time; has no influence either
    # From the trial; None where there was none.
    device: str | None = None
    views_per_second: float | None = None
    training_seconds: float | None = None  # by the spec's workers; "auto" counts as one
    sampling_seconds: float | None = None  # by one actor


def estimate(spec: Spec, method: Method, views: float, *, trial: bool = True) -> Cost:
    """Return the cost of running `spec`, whose method takes that many views in all.

    With a trial the network is timed for a moment on this machine.

    Raises:
        InvalidRequest: the spec's network cannot be built.
    """
    # Torch takes seconds to import on a slow machine, and only this needs it.
    from pipeline.models import build_denoiser, build_sampler
    from privacy.gradients.memory import activation_bytes
    from synth.preconditioning import example_inputs

    denoiser = build_denoiser(spec)
    work = method.workload(denoiser)
    inputs = example_inputs(1, spec.data.channels, spec.data.size)
    with _counted_flops(denoiser) as flops:
        activations = activation_bytes(denoiser, inputs)
    forward = sum(flops)
    guided = 2 if spec.synthesize.guidance > 0 else 1
    evaluations = spec.synthesize.total * build_sampler(spec).nfe * guided
    parameters = sum(weight.numel() for weight in denoiser.parameters())
    cost = Cost(
        parameters=parameters,
        views=views,
        flops_per_view=forward * _BACKWARD_FACTOR,
        training_flops=views * forward * _BACKWARD_FACTOR,
        sampling_flops=float(evaluations * forward),
        worker_bytes=parameters * _BYTES_PER_PARAMETER + activations * work.views,
        gradient_engine=work.engine,
        micro_batch=work.micro_batch,
    )
    if not trial:
        return cost
    device, rate = _views_per_second(spec, denoiser)
    workers = 1 if spec.resources.workers == "auto" else spec.resources.workers
    return replace(
        cost,
        device=device,
        views_per_second=rate,
        training_seconds=views / rate / workers,
        # An evaluation without a backward pass is a third of a view.
        sampling_seconds=evaluations / (rate * _BACKWARD_FACTOR),
    )


@contextmanager
def _counted_flops(network: Any) -> Iterator[list[int]]:
    """Yield the list to which every product and convolution of a forward pass adds its FLOPs."""
    # torch.utils.flop_counter counts the same, but takes over a second to begin.
    from torch import nn

    from synth.unet import Attention

    flops: list[int] = []

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, Attention):  # q·k and the weighted sum of v
            tokens = output[0, 0].numel()
            flops.append(4 * output.shape[0] * output.shape[1] * tokens**2)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            flops.append(2 * output.numel() * module.weight[0].numel())

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    try:
        yield flops
    finally:
        for hook in hooks:
            hook.remove()


def _views_per_second(spec: Spec, denoiser: Any) -> tuple[str, float]:
    """Return the device and its forward and backward passes a second, in a batch large enough."""
    import torch

    from synth.preconditioning import example_inputs

    device = "cuda" if torch.cuda.is_available() else "cpu"
    denoiser = denoiser.to(device)

    def seconds(views: int) -> float:
        with torch.device(device):
            inputs = example_inputs(views, spec.data.channels, spec.data.size)
        start = time.perf_counter()
        denoiser(*inputs).square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    views = 1
    seconds(views)  # the first pass builds kernels and takes memory
    while (taken := seconds(views)) < _TRIAL_SECONDS and views < _TRIAL_VIEWS:
        views *= 2
    return device, views / taken
