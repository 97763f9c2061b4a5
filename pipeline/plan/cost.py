"""What training and sampling would take: operations, memory and, by a short trial, time.

Everything but the parameter count is an estimate. Nothing here opens data: the trial runs
the network of the spec, untrained, on random numbers.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import (
    build_denoiser,
    build_sampler,
    gradient_engine,
    micro_batch_of,
    views_of,
)
from pipeline.spec import Spec
from privacy.gradients import RecordEngine
from privacy.gradients.memory import activation_bytes

# Weights 4, EMA 4, Adam 8, and sum of clipped gradients and noise in float64, 8 each.
_BYTES_PER_PARAMETER = 32
# A backward pass multiplies every activation twice: once for inputs, once for weights.
_BACKWARD_FACTOR = 3
_TRIAL_SECONDS = 0.25
_TRIAL_VIEWS = 1024


@dataclass(frozen=True)
class Cost:
    """Cost of one run.

    Attributes:
        parameters: weights of the network.
        views: expected noised copies over the whole training, T·E[B]·K.
        flops_per_view: forward and backward of one noised copy.
        training_flops: views times flops_per_view.
        sampling_flops: all images, all evaluations, guidance included.
        worker_bytes: weights, optimiser and the activations that are held at a time; images
            and the Python, torch and Ray runtimes come on top.
        gradient_engine: how clipped gradients are computed; has no influence on them.
        micro_batch: records at a time; has no influence either.
        device: what the trial ran on; None where there was no trial.
        views_per_second: measured in a trial of a second or so, or None.
        training_seconds: estimated from the trial for the spec's workers ("auto" counts as one,
            for how many there will be is not known), or None.
        sampling_seconds: estimated from the trial for one actor, or None.
    """

    parameters: int
    views: float
    flops_per_view: int
    training_flops: float
    sampling_flops: float
    worker_bytes: int
    gradient_engine: str
    micro_batch: int
    device: str | None = None
    views_per_second: float | None = None
    training_seconds: float | None = None
    sampling_seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The attributes, for JSON."""
        return asdict(self)


def estimate(spec: Spec, views: float, *, trial: bool = True) -> Cost:
    """The cost of running `spec`, whose training sees `views` noised copies.

    Args:
        spec: the spec.
        views: expected noised copies over the whole training.
        trial: whether to time the network for a moment on this machine.

    Raises:
        InvalidRequest: the spec's network cannot be built.
    """
    with torch.device("meta"):
        denoiser = build_denoiser(spec)
        inputs = views_of(spec, 1)
    forward = _forward_flops(denoiser, inputs)
    parameters = sum(weight.numel() for weight in denoiser.parameters())
    engine = gradient_engine(spec, views / spec.train.views)
    micro_batch = micro_batch_of(spec)
    records_at_once = 1 if isinstance(engine, RecordEngine) else micro_batch
    activations = activation_bytes(denoiser, inputs) * spec.train.views * records_at_once
    evaluations = spec.synthesize.total * evaluations_per_image(spec)
    cost = Cost(
        parameters=parameters,
        views=views,
        flops_per_view=forward * _BACKWARD_FACTOR,
        training_flops=views * forward * _BACKWARD_FACTOR,
        sampling_flops=float(evaluations * forward),
        worker_bytes=parameters * _BYTES_PER_PARAMETER + activations,
        gradient_engine=engine.name,
        micro_batch=micro_batch,
    )
    return _with_times(cost, spec, evaluations) if trial else cost


def evaluations_per_image(spec: Spec) -> int:
    """Network evaluations for one image; guidance doubles them."""
    once = build_sampler(spec).nfe
    return once * (2 if spec.synthesize.guidance > 0 else 1)


def _with_times(cost: Cost, spec: Spec, evaluations: int) -> Cost:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = _views_per_second(spec, device)
    workers = 1 if spec.resources.workers == "auto" else spec.resources.workers
    return Cost(
        **{
            **asdict(cost),
            "device": device,
            "views_per_second": rate,
            "training_seconds": cost.views / rate / workers,
            # An evaluation without a backward pass is a third of a view.
            "sampling_seconds": evaluations / (rate * _BACKWARD_FACTOR),
        }
    )


def _forward_flops(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


def _views_per_second(spec: Spec, device: str) -> float:
    """Forward and backward passes a second, in the smallest batch that takes long enough."""
    denoiser = build_denoiser(spec).to(device)

    def seconds(views: int) -> float:
        with torch.device(device):
            inputs = views_of(spec, views)
        start = time.perf_counter()
        denoiser(*inputs).square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    views = 1
    seconds(views)  # the first pass builds kernels and takes memory
    while (taken := seconds(views)) < _TRIAL_SECONDS and views < _TRIAL_VIEWS:
        views *= 2
    return views / taken
