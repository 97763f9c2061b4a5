"""How the cost of a step grows with records B, views K, pixels and workers W: straight lines."""

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

from .timing import Case, interleave
from .workload import SMALL, Workload

_RECORDS = 64
_SIDES = (8, 12, 16, 24)


@dataclass(frozen=True)
class Curve:
    """Seconds against one size of the problem, and how straight the line through them is.

    Attributes:
        title: what varies.
        unit: of `x`.
        x: sizes.
        seconds: medians.
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


def curves(rounds: int) -> Iterator[Curve]:
    """Measure clipped sums, with the engine that training would choose, at growing sizes."""
    records = (16, 32, 64, 128)
    yield _curve("records B", "records", records, [_step(SMALL, n) for n in records], rounds)
    views = (2, 4, 8, 16, 32)
    of_views = [_step(replace(SMALL, views=K), _RECORDS // 2) for K in views]
    yield _curve("views K", "views", views, of_views, rounds)
    networks = [replace(SMALL.network, size=side, attention=()) for side in _SIDES]
    of_pixels = [_step(replace(SMALL, network=network), _RECORDS // 4) for network in networks]
    yield _curve("image size", "pixels", [side**2 for side in _SIDES], of_pixels, rounds)
    yield workers(rounds)


def workers(rounds: int, counts: Sequence[int] = (1, 2, 4)) -> Curve:
    """Measure W workers of one thread each, side by side, each with the same number of records.

    With a core for each the line is flat; with fewer it rises from there on.
    """
    seconds = []
    for count in counts:
        with ProcessPoolExecutor(count, get_context("spawn")) as pool:
            list(pool.map(_alone, [1] * count))  # builds kernels
            seconds.append(max(pool.map(_alone, [rounds] * count)))
    return Curve.of("workers W, equal work each", "workers", counts, seconds)


def _alone(rounds: int) -> float:
    torch.set_num_threads(1)
    step = _step(SMALL, _RECORDS)
    start = perf_counter()
    for _ in range(rounds):
        step()
    return (perf_counter() - start) / rounds


def _step(workload: Workload, n: int) -> Callable[[], object]:
    engine = choose(workload.network.size**2, workload.views, "cpu")
    denoiser, records, loss = workload.denoiser(), workload.records(n), workload.loss()
    return partial(engine.sum_of_clipped, denoiser, loss, records, 1.0, _RECORDS)


def _curve(
    title: str, unit: str, x: Sequence[float], steps: list[Callable[[], object]], rounds: int
) -> Curve:
    cases = [Case(str(size), step) for size, step in zip(x, steps, strict=True)]
    measured = interleave(cases, rounds)
    return Curve.of(title, unit, x, [float(np.median(measured[case.name])) for case in cases])
