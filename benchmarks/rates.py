"""What a step achieves of its device: operations against matrix rate, bytes against bandwidth.

The rates to hold a step against are measured here too, on the same device in the same rounds:
nobody has to look up a data sheet, and a card that is shared or throttled is judged by what it
gives.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from privacy.gradients import GradientEngine, choose
from privacy.gradients.memory import activation_bytes
from synth.loss import DenoisingLoss, autocast
from synth.preconditioning import Denoiser
from synth.settings import PRECISIONS, Precision

from .steps import LIMIT, in_each_order, micro_batches, non_private
from .timing import Case, fastest, interleave
from .workload import PAPER_STEPS, Workload

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Sides of the square product, and bytes that are copied: far beyond what caches hold.
_SIDE = {"cpu": 1024, "cuda": 8192}
_COPIED = {"cpu": 2**27, "cuda": 2**31}
_FLOAT = 4

NOTES = (
    "Operations: those of the non-private step (torch's FlopCounterMode: products, convolutions,",
    "forward and backward). The private step is credited with the same, however many it needs.",
    "Bytes: the least that must move: what autograd keeps, written and read once; weights, read",
    "twice, and their gradients, written once, a micro-batch. Caches may spare part of it, and",
    "what lies between two operations is not counted.",
    "Held against the device's product of large matrices and its copy, timed in the same rounds;",
    "convolutions by fewer multiplications than they are counted for can be faster than products.",
)


@dataclass(frozen=True)
class Rate:
    """What one way to take a step achieves in one precision.

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
    """A way to take a step, and the micro-batch that suits it."""

    case: Case
    micro_batch: int


def rates(workload: Workload, n: int, rounds: int) -> list[Rate]:
    """Measure the limit and the chosen engine on `n` records, in each precision."""
    flops = useful_flops(workload, n)
    found = []
    for precision in PRECISIONS:
        ways = _ways(workload, n, precision)
        product, copy = _product(workload.kind, precision), _copy(workload.kind)
        measured = interleave([product, copy, *(way.case for way in ways)], rounds)
        seconds = {name: statistics.median(taken) for name, taken in measured.items()}
        matrix = 2 * _SIDE[workload.kind] ** 3 / seconds[product.name]
        bandwidth = 2 * _COPIED[workload.kind] / seconds[copy.name]
        for way in ways:
            taken = seconds[way.case.name]
            moved = least_bytes(workload, n, way.micro_batch, precision)
            found.append(
                Rate(
                    workload=workload.name,
                    way=way.case.name,
                    precision=precision,
                    seconds=taken,
                    ratio=taken / seconds[LIMIT],
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
    """Return the bytes that a non-private step of `n` records cannot but move; see `NOTES`."""
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
        # One for each size: what is captured is made anew when the size changes.
        return choose(
            workload.network.size**2,
            workload.views,
            workload.kind,
            precision,
            workload.batch * PAPER_STEPS,
        )

    def limit(denoiser: Denoiser, size: int) -> None:
        with autocast(precision, workload.kind):
            non_private(denoiser, records, size)

    def private(size: int) -> object:
        return engine(size).sum_of_clipped(denoiser, loss, records, 1.0, size)

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
