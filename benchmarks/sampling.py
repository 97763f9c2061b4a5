"""The shipped Churn sampler against a plain eager loop in float32.

Both use as many threads as torch would: the plain loop in one process, the shipped sampler as on
Ray actors, in processes of one thread each.
"""

import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.cluster.actor_group import tune_malloc
from synth.inference import at_precision, chosen_batch
from synth.preconditioning import Denoiser
from synth.samplers.base import Denoise, guided
from synth.samplers.churn import Churn
from synth.settings import PRECISIONS, Precision

from .timing import Case, fastest, size_for
from .workload import Workload

Draw = Callable[[tuple[int, ...]], Tensor]

_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # mean, relative to the largest pixel


@torch.no_grad()
def plain_churn(
    denoiser: Denoiser, labels: Tensor, churn: Churn, shape: tuple[int, ...], w: float, draw: Draw
) -> Tensor:
    """Run algorithm 2 of Karras et al. 2022, written out in float32.

    With guidance w, the two branches run one after the other.
    """
    null = torch.full_like(labels, denoiser.network.config.classes)

    def denoise(x: Tensor, level: float) -> Tensor:
        sigma = torch.full((len(x),), level)
        conditional = denoiser(x, sigma, labels)
        return conditional if w == 0 else (1 + w) * conditional - w * denoiser(x, sigma, null)

    x = churn.sigma_max * draw((len(labels), *shape))
    for sigma, lower in pairwise([*churn.sigmas, 0.0]):
        gamma = 0.0
        if churn.S_min <= sigma <= churn.S_max:
            gamma = min(churn.S_churn / churn.steps, math.sqrt(2) - 1)
        raised = sigma * (1 + gamma)
        if gamma > 0:
            x = x + math.sqrt(raised**2 - sigma**2) * churn.S_noise * draw(x.shape)
        slope = (x - denoise(x, raised)) / raised
        euler = x + (lower - raised) * slope
        if lower > 0:
            euler = x + (lower - raised) * (slope + (euler - denoise(euler, lower)) / lower) / 2
        x = euler
    return x


def sampling_cases(workload: Workload, seconds: float) -> tuple[list[Case], list[str]]:
    """Return the plain loop and the shipped sampler in each precision, without and with guidance.

    Args:
        workload: the size.
        seconds: that the plain loop takes at least in one thread.

    Raises:
        AssertionError: from the same draws they make different images.
    """
    network, churn = workload.network, Churn(steps=workload.nfe_steps)
    workers = torch.get_num_threads()
    batch = chosen_batch(network.size, network.base, "float32")
    count = workers * min(batch, size_for(seconds, partial(_plain, workload, churn, 0.0)))
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_as_an_actor
    )
    cases: list[Case] = []
    for w in (0.0, 1.0):
        peer = _plain_case(workload, churn, count, w)
        cases.append(peer)
        for precision in PRECISIONS:
            _require_same(workload, churn, w, precision)
            cases.append(_shipped_case(workload, pool, count, w, precision, peer.name))
    notes = [
        f"{count} images, Churn with {churn.nfe} evaluations each, w = 0 and w = 1.",
        f"The plain loop runs in one process with {workers} threads, at its fastest batch.",
        f"As shipped: {workers} processes of one thread, at the batch that the sampler chooses.",
        "The shipped sampler keeps its state in float64; the same draws make the same images.",
    ]
    return cases, notes


def _plain_case(workload: Workload, churn: Churn, count: int, w: float) -> Case:
    batches = sorted({min(batch, count) for batch in (16, 64, 256)})

    def plain(batch: int) -> None:
        for begun in range(0, count, batch):
            _plain(workload, churn, w, min(batch, count - begun))

    best = fastest([Case(str(b), partial(plain, b)) for b in batches])
    return Case(f"plain eager float32 loop, w={w:g} (batch {best.name})", best.run)


def _plain(workload: Workload, churn: Churn, w: float, count: int) -> None:
    network, labels = workload.network, torch.arange(count) % 10
    shape = (network.channels, network.size, network.size)
    plain_churn(_denoiser(workload), labels, churn, shape, w, torch.randn)


@cache
def _denoiser(workload: Workload) -> Denoiser:
    return workload.denoiser().eval()


def _shipped_case(
    workload: Workload,
    pool: ProcessPoolExecutor,
    count: int,
    w: float,
    precision: Precision,
    peer: str,
) -> Case:
    network = workload.network
    batch = chosen_batch(network.size, network.base, precision, guided=w != 0)
    sizes = [min(batch, count - begun) for begun in range(0, count, batch)]

    def run() -> None:
        list(pool.map(partial(_draw, workload, w, precision), sizes))

    return Case(f"as shipped, {precision}, w={w:g} (batch {batch})", run, peer=peer)


def _as_an_actor() -> None:
    """Set this process up as `ShardSampler` does an actor's."""
    torch.set_num_threads(1)
    tune_malloc()


@torch.inference_mode()
def _draw(workload: Workload, w: float, precision: Precision, count: int) -> None:
    network, generator = workload.network, torch.Generator().manual_seed(0)
    shape, labels = (network.channels, network.size, network.size), torch.arange(count) % 10
    churn = Churn(steps=workload.nfe_steps)
    churn.sample(_denoise(workload, w, precision), labels, shape, generator)


@cache
def _denoise(workload: Workload, w: float, precision: Precision) -> Denoise:
    null = workload.network.classes
    return guided(at_precision(workload.denoiser(), precision), w, null)


def _require_same(workload: Workload, churn: Churn, w: float, precision: Precision) -> None:
    network, labels = workload.network, torch.arange(8)
    shape = (network.channels, network.size, network.size)
    same = torch.Generator().manual_seed(0)

    def draw(of: tuple[int, ...]) -> Tensor:
        return torch.randn(of, generator=same, dtype=torch.float64).float()

    expected = plain_churn(workload.denoiser(), labels, churn, shape, w, draw)
    denoise = _denoise(workload, w, precision)
    found = churn.sample(denoise, labels, shape, torch.Generator().manual_seed(0))
    difference = float((expected - found).abs().mean() / expected.abs().max())
    if not difference < _TOLERANCE[precision]:
        raise AssertionError(f"{precision}: the two samplers' images are {difference:.1e} apart")
