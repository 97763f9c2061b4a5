"""How the time of a step grows with records B, views K, pixels and workers W: straight lines.

A point is the minimum over its rounds, since disturbances only add time. All points of a curve use
one engine and one micro-batch, so that nothing but the size varies; where images grow, the
micro-batch shrinks as in a training, to keep the memory constant.
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

from privacy.gradients import choose
from privacy.gradients.base import GradientEngine

from .machine import cores
from .steps import sum_of_clipped
from .timing import Case, interleave
from .workload import SMALL, Workload

_MICRO_BATCH = 32
_RECORDS = (32, 64, 128, 256)
_VIEWS = (2, 4, 8, 16)
_SIDES = (8, 12, 16, 32)
_PIXELS = 2**15  # of all views in a micro-batch
_WORKERS = (1, 2, 3)
_GPU_TIMES = 16  # as many records for a GPU


@dataclass(frozen=True)
class Curve:
    """Seconds against one size of the problem, with a least-squares line.

    Attributes:
        title: what varies.
        unit: of `x`.
        x: sizes.
        seconds: minimum over the rounds.
        r_squared: of the line; 1 is straight.
        intercept: of the line, as a fraction of the last value: the part that does not grow.
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


def curves(seconds: float, kind: str) -> Iterator[Curve]:
    """Measure clipped sums at growing sizes, with the engine that training chooses at 8x8.

    Args:
        seconds: of timed rounds in all.
        kind: type of the device.
    """
    small = replace(SMALL, kind=kind)
    each = seconds / 4
    times = _GPU_TIMES if kind == "cuda" else 1
    size = _MICRO_BATCH * times
    # One for each step, since a captured graph is recaptured when the size changes.
    engine = partial(choose, small.network.size**2, small.views, kind, "float32")
    step = partial(_step, engine=engine, micro_batch=size)

    of_records = [step(small, times * n) for n in _RECORDS]
    yield _curve("records B", "records", [times * n for n in _RECORDS], of_records, each)
    of_views = [step(replace(small, views=K), size) for K in _VIEWS]
    yield _curve("views K", "views", _VIEWS, of_views, each)
    # Attention costs the square of the pixels; without it the cost is theirs.
    networks = [small.network.model_copy(update={"size": side, "attention": ()}) for side in _SIDES]
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
    yield _curve("image size", "pixels", [side**2 for side in _SIDES], of_pixels, each)
    yield workers(each)


def workers(seconds: float, counts: Sequence[int] = _WORKERS) -> Curve:
    """Measure W workers of one CPU thread each, in parallel and with equally many records.

    Times are multiplied by the cores that they share: a straight line, if sharing costs nothing.
    """
    points = []
    for count in counts:
        with ProcessPoolExecutor(count, get_context("spawn")) as pool:
            warm_up = max(pool.map(_alone, [1] * count))[0]
            rounds = max(3, int(seconds / len(counts) / warm_up))
            slowest = np.max(list(pool.map(_alone, [rounds] * count)), axis=0)
            points.append(float(slowest.min()) * min(count, cores()))
    return Curve.of("workers W, equal work each", "workers", counts, points)


def _alone(rounds: int) -> list[float]:
    """Return seconds of each round."""
    torch.set_num_threads(1)
    engine = partial(choose, SMALL.network.size**2, SMALL.views, "cpu", "float32")
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
    return partial(sum_of_clipped, engine(), denoiser, loss, records, 1.0, micro_batch)


def _curve(
    title: str, unit: str, x: Sequence[float], steps: list[Callable[[], object]], seconds: float
) -> Curve:
    cases = [Case(str(size), step) for size, step in zip(x, steps, strict=True)]
    measured = interleave(cases, seconds)
    return Curve.of(title, unit, x, [min(measured[case.name]) for case in cases])
