"""The rates that a step achieves: operations against matrix rate, bytes against bandwidth.

The device's own rates are measured in the same rounds, so that a card that is shared or throttled
is judged by what it can do now rather than by its data sheet.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from privacy.gradients import choose
from privacy.gradients.base import GradientEngine
from privacy.gradients.memory import activation_bytes
from synth.preconditioning import Denoiser, DenoisingLoss, autocast
from synth.settings import PRECISIONS, Precision

from .steps import LIMIT, in_each_order, micro_batches, non_private, records_in, sum_of_clipped
from .timing import Case, fastest, interleave
from .workload import Workload

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Sides of the square product, and bytes that are copied: far beyond what caches hold.
_SIDE = {"cpu": 1024, "cuda": 8192}
_COPIED = {"cpu": 2**27, "cuda": 2**31}
_FLOAT = 4

NOTES = (
    "Operations: those of the non-private step (torch's FlopCounterMode: products, convolutions,",
    "forward and backward). The private step is credited with the same, however many it needs.",
    "Bytes: the minimum: tensors saved for backward are written and read once; per micro-batch,",
    "weights are read twice and their gradients written once. Intermediates are not counted.",
    "Compared with a product of large matrices and a copy, timed in the same rounds. Convolutions",
    "that need fewer multiplications than are counted can exceed the rate of products.",
)


@dataclass(frozen=True)
class Rate:
    """The rates of one way to take a step in one precision.

    Attributes:
        workload: the size's name.
        way: the non-private step or the engine that training chooses.
        precision: what the network computes in.
        seconds: of the step, median.
        ratio: to the non-private step in the same precision.
        teraflops: useful operations a second, in 1e12.
        of_matrix: the same as a part of the device's matrix rate in that precision.
        gigabytes: the least bytes that must move, a second, in 1e9.
        of_bandwidth: the same as a part of the device's bandwidth.
    """

    workload: str
    way: str
    precision: str
    seconds: float
    ratio: float
    teraflops: float
    of_matrix: float
    gigabytes: float
    of_bandwidth: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Way:
    """A way to take a step, and its fastest micro-batch."""

    case: Case
    micro_batch: int


def rates(workload: Workload, step_seconds: float, seconds: float) -> list[Rate]:
    """Measure the non-private step and the chosen engine in each precision.

    Args:
        workload: the size.
        step_seconds: that the non-private step takes at least.
        seconds: of timed rounds in all.
    """
    found = []
    for precision in PRECISIONS:
        with autocast(precision, workload.kind):
            n = records_in(workload, step_seconds)
        flops = useful_flops(workload, n)
        ways = _ways(workload, n, precision)
        product, copy = _product(workload.kind, precision), _copy(workload.kind)
        measured = interleave(
            [product, copy, *(way.case for way in ways)], seconds / len(PRECISIONS)
        )
        medians = {name: statistics.median(taken) for name, taken in measured.items()}
        matrix = 2 * _SIDE[workload.kind] ** 3 / medians[product.name]
        bandwidth = 2 * _COPIED[workload.kind] / medians[copy.name]
        for way in ways:
            taken = medians[way.case.name]
            moved = least_bytes(workload, n, way.micro_batch, precision)
            found.append(
                Rate(
                    workload=workload.name,
                    way=way.case.name,
                    precision=precision,
                    seconds=taken,
                    ratio=taken / medians[LIMIT],
                    teraflops=flops / taken / 1e12,
                    of_matrix=flops / taken / matrix,
                    gigabytes=moved / taken / 1e9,
                    of_bandwidth=moved / taken / bandwidth,
                )
            )
    return found


def useful_flops(workload: Workload, n: int) -> int:
    """Return the operations of the non-private step of `n` records, forward and backward."""
    denoiser, records = workload.denoiser(), workload.records(1)
    with FlopCounterMode(display=False) as counter:
        non_private(denoiser, records, 1)
    return n * int(counter.get_total_flops())


def least_bytes(workload: Workload, n: int, micro_batch: int, precision: Precision) -> int:
    """Return the bytes that a non-private step of `n` records must move; see `NOTES`."""
    denoiser, records = workload.denoiser(), workload.records(1)
    image, label, sigma, noise = (part[0] for part in records)
    inputs = image + noise, sigma, label.expand(workload.views)
    with autocast(precision, workload.kind):
        kept = activation_bytes(denoiser, inputs)
    weights = _FLOAT * sum(p.numel() for p in denoiser.parameters())
    return 2 * n * kept + 3 * weights * -(-n // micro_batch)


def _ways(workload: Workload, n: int, precision: Precision) -> list[Way]:
    denoiser, records = workload.denoiser(), workload.records(n)
    loss = DenoisingLoss(denoiser.preconditioning, precision)

    @cache
    def engine(size: int) -> GradientEngine:
        # One for each size, since a captured graph is recaptured when the size changes.
        return choose(
            workload.network.size**2,
            workload.views,
            workload.kind,
            precision,
        )

    def limit(denoiser: Denoiser, size: int) -> None:
        with autocast(precision, workload.kind):
            non_private(denoiser, records, size)

    def private(size: int) -> object:
        return sum_of_clipped(engine(size), denoiser, loss, records, 1.0, size)

    orders = in_each_order(workload).values()
    return [
        _best(LIMIT, [partial(limit, ordered) for ordered in orders], n),
        _best(f"private, {engine(n).name}", [private], n),
    ]


def _best(name: str, ways: Sequence[Callable[[int], object]], n: int) -> Way:
    found = {
        str((number, size)): Way(Case(str((number, size)), partial(way, size)), size)
        for number, way in enumerate(ways)
        for size in micro_batches(n)
    }
    best = found[fastest([way.case for way in found.values()]).name]
    return replace(best, case=replace(best.case, name=name))


def _product(kind: str, precision: Precision) -> Case:
    side, dtype = _SIDE[kind], _DTYPES[precision]
    a, b = torch.randn(2, side, side, device=kind).to(dtype)
    return Case("matrix product", lambda: a @ b)


def _copy(kind: str) -> Case:
    source = torch.zeros(_COPIED[kind] // _FLOAT, device=kind)
    target = torch.empty_like(source)
    return Case("copy", lambda: target.copy_(source))
