"""How the cost of a step grows with records B, views K, pixels and workers W: straight lines.

A point is the least of its rounds, for what disturbs a machine only ever adds time. All points of
a curve are computed by one engine at one micro-batch, so that nothing but the size varies; where
images grow, the micro-batch shrinks as a training's does, for all points to hold as much at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np
import torch

from privacy.gradients import GradientEngine, choose

from .machine import cores
from .timing import Case, interleave
from .workload import SMALL, Workload

_MICRO_BATCH = 32
_RECORDS = (32, 64, 128, 256)
_VIEWS = (2, 4, 8, 16)
_SIDES = (8, 12, 16, 32)
_PIXELS = 2**15  # of all views in a micro-batch
_WORKERS = (1, 2, 4)
_GPU_TIMES = 16  # as many records for a GPU


@dataclass(frozen=True)
class Curve:
    """Seconds against one size of the problem, and how straight the line through them is.

    Attributes:
        title: what varies.
        unit: of `x`.
        x: sizes.
        seconds: the least of the rounds.
        r_squared: of the least squares line; 1 is straight.
        intercept: of that line, as a part of the last value: what does not grow.
    """

    title: str
    unit: str
    x: tuple[float, ...]
    seconds: tuple[float, ...]
    r_squared: float
    intercept: float

    @classmethod
    def of(cls, title: str, unit: str, x: Sequence[float], seconds: Sequence[float]) -> "Curve":
        """Fit a line through the points."""
        slope, intercept = np.polyfit(x, seconds, 1)
        rest = np.var(np.asarray(seconds) - slope * np.asarray(x) - intercept)
        straight = 1 - rest / np.var(seconds)
        return cls(
            title, unit, tuple(x), tuple(seconds), float(straight), float(intercept / seconds[-1])
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def curves(rounds: int, kind: str) -> Iterator[Curve]:
    """Measure clipped sums at growing sizes, with the engine that training chooses at 8x8.

    Args:
        rounds: times each point is run.
        kind: type of the device.
    """
    small = replace(SMALL, kind=kind)
    times = _GPU_TIMES if kind == "cuda" else 1
    size = _MICRO_BATCH * times
    # Each step has its own, or what is captured for one would be made anew for the next.
    engine = partial(choose, small.network.size**2, small.views, kind, "float32", records=0)
    step = partial(_step, engine=engine, micro_batch=size)

    of_records = [step(small, times * n) for n in _RECORDS]
    yield _curve("records B", "records", [times * n for n in _RECORDS], of_records, rounds)
    of_views = [step(replace(small, views=K), size) for K in _VIEWS]
    yield _curve("views K", "views", _VIEWS, of_views, rounds)
    # Attention costs the square of the pixels; without it the cost is theirs.
    networks = [replace(small.network, size=side, attention=()) for side in _SIDES]
    largest = size // 2
    of_pixels = [
        _step(
            replace(small, network=network),
            largest,
            engine,
            min(largest, max(1, _PIXELS * times // (network.size**2 * small.views))),
        )
        for network in networks
    ]
    yield _curve("image size", "pixels", [side**2 for side in _SIDES], of_pixels, rounds)
    yield workers(rounds)


def workers(rounds: int, counts: Sequence[int] = _WORKERS) -> Curve:
    """Measure W workers of one CPU thread each, side by side, each with the same number of records.

    Their seconds are times the cores that they share: a line, if side by side nothing is lost.
    """
    seconds = []
    for count in counts:
        with ProcessPoolExecutor(count, get_context("spawn")) as pool:
            list(pool.map(_alone, [1] * count))  # builds kernels
            slowest = np.max(list(pool.map(_alone, [rounds] * count)), axis=0)
            seconds.append(float(slowest.min()) * min(count, cores()))
    return Curve.of("workers W, equal work each", "workers", counts, seconds)


def _alone(rounds: int) -> list[float]:
    """Return seconds of each round."""
    torch.set_num_threads(1)
    engine = partial(choose, SMALL.network.size**2, SMALL.views, "cpu", "float32", records=0)
    step = _step(SMALL, 2 * _MICRO_BATCH, engine, _MICRO_BATCH)
    seconds = []
    for _ in range(rounds):
        start = perf_counter()
        step()
        seconds.append(perf_counter() - start)
    return seconds


def _step(
    workload: Workload, n: int, engine: Callable[[], GradientEngine], micro_batch: int
) -> Callable[[], object]:
    denoiser, records, loss = workload.denoiser(), workload.records(n), workload.loss()
    return partial(engine().sum_of_clipped, denoiser, loss, records, 1.0, micro_batch)


def _curve(
    title: str, unit: str, x: Sequence[float], steps: list[Callable[[], object]], rounds: int
) -> Curve:
    cases = [Case(str(size), step) for size, step in zip(x, steps, strict=True)]
    measured = interleave(cases, rounds)
    return Curve.of(title, unit, x, [min(measured[case.name]) for case in cases])
