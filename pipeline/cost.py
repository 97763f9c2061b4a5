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

from pipeline.building import build_denoiser, build_sampler
from pipeline.spec import Spec

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
        worker_bytes: weights, optimiser and the activations of one micro-batch (one record
            where none is given); images and the Python, torch and Ray runtimes come on top.
        device: what the trial ran on; None where there was no trial.
        views_per_second: measured in a trial of a second or so, or None.
        training_seconds: estimated from the trial for the spec's workers, or None.
        sampling_seconds: estimated from the trial for one actor, or None.
    """

    parameters: int
    views: float
    flops_per_view: int
    training_flops: float
    sampling_flops: float
    worker_bytes: int
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
        inputs = _inputs(spec, 1)
    forward = _forward_flops(denoiser, inputs)
    parameters = sum(weight.numel() for weight in denoiser.parameters())
    views_at_once = spec.train.views * (spec.train.micro_batch or 1)
    activations = _saved_bytes(denoiser, inputs) * views_at_once
    evaluations = spec.synthesize.total * evaluations_per_image(spec)
    cost = Cost(
        parameters=parameters,
        views=views,
        flops_per_view=forward * _BACKWARD_FACTOR,
        training_flops=views * forward * _BACKWARD_FACTOR,
        sampling_flops=float(evaluations * forward),
        worker_bytes=parameters * _BYTES_PER_PARAMETER + activations,
    )
    return _with_times(cost, spec, evaluations) if trial else cost


def evaluations_per_image(spec: Spec) -> int:
    """Network evaluations for one image; guidance doubles them."""
    once = build_sampler(spec).nfe
    return once * (2 if spec.synthesize.guidance > 0 else 1)


def _with_times(cost: Cost, spec: Spec, evaluations: int) -> Cost:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = _views_per_second(spec, device)
    return Cost(
        **{
            **asdict(cost),
            "device": device,
            "views_per_second": rate,
            "training_seconds": cost.views / rate / spec.resources.workers,
            # An evaluation without a backward pass is a third of a view.
            "sampling_seconds": evaluations / (rate * _BACKWARD_FACTOR),
        }
    )


def _inputs(spec: Spec, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, noise levels and labels of `views` copies on the device in force."""
    x = torch.zeros(views, spec.data.channels, spec.data.size, spec.data.size)
    return x, torch.ones(views), torch.zeros(views, dtype=torch.long)


def _forward_flops(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


def _saved_bytes(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Bytes that autograd keeps of one forward pass, weights left out."""
    weights = {weight.untyped_storage()._cdata for weight in network.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            saved[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _views_per_second(spec: Spec, device: str) -> float:
    """Forward and backward passes a second, in the smallest batch that takes long enough."""
    denoiser = build_denoiser(spec).to(device)

    def seconds(views: int) -> float:
        with torch.device(device):
            inputs = _inputs(spec, views)
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
