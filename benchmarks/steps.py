"""The price of clipping: every way to clipped per-record gradients beside the non-private step.

All run as in a training: in all workers at the same time, each with as many records.
"""

from collections.abc import Callable, Iterator
from copy import copy
from functools import cache, partial

import torch
from torch import Tensor

from privacy.gradients import ENGINES, CompiledEngine, GradientEngine, choose
from synth.preconditioning import Denoiser

from .opacus_peer import OpacusPeer
from .timing import Case, fastest
from .worker import Workers
from .workload import PAPER_STEPS, Workload

LIMIT = "non-private step"
_OPACUS = "Opacus, K forwards"
_ORDERS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
_TOLERANCE = 1e-4  # relative L2, float32 throughout; a second clip or a lost view is far beyond

Sums = dict[str, Tensor]


def non_private(denoiser: Denoiser, records: tuple[Tensor, ...], micro_batch: int) -> None:
    """Do a plain backward pass of the mean loss over all records and views: the limit."""
    n, views = records[2].shape
    for image, label, sigma, noise in zip(*(p.split(micro_batch) for p in records), strict=True):
        noisy = (image[:, None] + noise).flatten(0, 1)
        levels = sigma.flatten()
        denoised = denoiser(noisy, levels, label.repeat_interleave(views))
        squared = (denoised - image.repeat_interleave(views, 0)).square().sum(dim=(1, 2, 3))
        ((denoiser.preconditioning.weight(levels) * squared).sum() / (n * views)).backward()
    for parameter in denoiser.parameters():
        parameter.grad = None


def limit(workload: Workload, n: int, weight: float = 1.0) -> Case:
    """Return the non-private step of `n` records at its best micro-batch and memory order."""
    records = workload.records(n)
    best = fastest(
        [
            Case(f"{size}, {order}", partial(non_private, denoiser, records, size))
            for order, denoiser in in_each_order(workload).items()
            for size in micro_batches(n)
        ]
    )
    return Case(LIMIT, best.run, weight)


def in_each_order(workload: Workload) -> dict[str, Denoiser]:
    """Return the denoiser with its weights, and so its feature maps, in each order of memory."""
    return {n: workload.denoiser().to(memory_format=order) for n, order in _ORDERS.items()}


def step_cases(workload: Workload, n: int, workers: Workers) -> tuple[list[Case], list[str]]:
    """Return the limit, every engine and Opacus on the same records and views, and notes.

    Each runs at the micro-batch that suits it best, the limit in its better order of memory, too.

    Raises:
        AssertionError: one of them does not give the sums that all the others give.
    """

    def at_best(name: str, ways: tuple[str, ...]) -> Case:
        # A compiler takes minutes for each size.
        sizes = [n] if name == CompiledEngine.name else micro_batches(n)
        every = [(way, size) for way in ways for size in sizes]
        best = fastest(
            [Case(str(size), partial(workers, _run, workload, n, way, size)) for way, size in every]
        )
        return Case(f"{name} (micro-batch {best.name})", best.run)

    chosen = _chosen(workload).name
    private = (*dict.fromkeys((*ENGINES, chosen)), _OPACUS)
    for way in private:
        workers(_check, workload, n, way)
    cases = [at_best(LIMIT, tuple(_ORDERS)), *(at_best(way, (way,)) for way in private)]
    notes = [
        f"{n} records a worker; the training would choose the engine {chosen!r} here.",
        f"Workers: {workers.count}, each a process with {workers.threads} thread(s), that work at "
        "the same time.",
        "All give the same sums of gradients clipped once a record (checked before timing).",
        "Each runs at its fastest micro-batch, the limit in its faster order of memory, too.",
        "No optimiser, no noise, no exchange between workers.",
    ]
    return cases, notes


def micro_batches(n: int) -> list[int]:
    """Return the micro-batches that are tried for `n` records."""
    return sorted({n, max(n // 2, 1), max(n // 4, 1)})


def _chosen(workload: Workload) -> GradientEngine:
    records = workload.batch * PAPER_STEPS
    return choose(workload.network.size**2, workload.views, workload.kind, "float32", records)


def _run(workload: Workload, n: int, way: str, micro_batch: int) -> None:
    _steps(workload, n)[way](micro_batch)


@cache
def _steps(workload: Workload, n: int) -> dict[str, Callable[[int], Sums | None]]:
    """Return, in a worker, every way to a step of its records, by name and given a micro-batch."""
    denoiser, records, loss = workload.denoiser(), workload.records(n), workload.loss()
    norms = ENGINES["record"].sum_of_clipped(denoiser, loss, records, 1.0, n).norms
    clip_norm = float(norms.median())  # half of the records are clipped
    chosen = _chosen(workload)
    engines = {**ENGINES, chosen.name: chosen}

    @cache
    def engine(name: str, size: int) -> GradientEngine:
        # One for each size: what is captured is made anew when the size changes.
        return copy(engines[name])

    def by_engine(name: str, size: int) -> Sums:
        own = engine(name, size)
        return own.sum_of_clipped(denoiser, loss, records, clip_norm, size).sums

    def plain(own: Denoiser, size: int) -> None:
        non_private(own, records, size)

    return {
        **{order: partial(plain, own) for order, own in in_each_order(workload).items()},
        **{name: partial(by_engine, name) for name in engines},
        _OPACUS: partial(OpacusPeer(denoiser, clip_norm).sums, records),
    }


def _check(workload: Workload, n: int, way: str) -> None:
    steps = _steps(workload, n)
    expected, sums = steps["record"](n), steps[way](n)
    assert expected is not None and sums is not None
    error = _norm(sums[key].double() - total for key, total in expected.items())
    relative = error / _norm(iter(expected.values()))
    if not relative < _TOLERANCE:
        raise AssertionError(f"{way} gives other sums than the record engine: {relative:.1e} off")


def _norm(tensors: Iterator[Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt())
