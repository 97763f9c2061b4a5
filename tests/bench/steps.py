"""The price of clipping: every way to clipped per-record gradients beside the non-private step."""

from collections.abc import Callable, Iterator
from copy import copy
from functools import cache, partial

import torch
from torch import Tensor

from privacy.gradients import ENGINES, CompiledEngine, GradientEngine, choose
from synth.denoisers import Denoiser

from .opacus_peer import OpacusPeer
from .timing import Case, fastest
from .workload import PAPER_STEPS, Workload

LIMIT = "non-private step"
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
        ((denoiser.config.weight(levels) * squared).sum() / (n * views)).backward()
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
    orders = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
    return {name: workload.denoiser().to(memory_format=order) for name, order in orders.items()}


def step_cases(workload: Workload, n: int) -> tuple[list[Case], list[str]]:
    """Return the limit, every engine and Opacus on the same records and views, and notes.

    Each runs at the micro-batch that suits it best.

    Raises:
        AssertionError: one of them does not give the sums that all the others give.
    """
    denoiser, records, loss = workload.denoiser(), workload.records(n), workload.loss()
    record = ENGINES["record"]
    norms = record.sum_of_clipped(denoiser, loss, records, 1.0, n).norms
    clip_norm = float(norms.median())  # half of the records are clipped
    expected = record.sum_of_clipped(denoiser, loss, records, clip_norm, n).sums

    chosen = choose(
        workload.network.size**2, workload.views, workload.kind, workload.batch * PAPER_STEPS
    )
    engines = {**ENGINES, chosen.name: chosen}

    @cache
    def engine(name: str, size: int) -> GradientEngine:
        # One for each size: what is captured is made anew when the size changes.
        return copy(engines[name])

    def by_engine(name: str, size: int) -> Sums:
        own = engine(name, size)
        return own.sum_of_clipped(denoiser, loss, records, clip_norm, size).sums

    ways: dict[str, Callable[[int], Sums]] = {name: partial(by_engine, name) for name in engines}
    ways["Opacus, K forwards"] = partial(OpacusPeer(denoiser, clip_norm).sums, records)
    cases = [limit(workload, n)]
    for name, way in ways.items():
        _require_equal(name, way(n), expected)
        # A compiler takes minutes for each size.
        sizes = [n] if name == CompiledEngine.name else micro_batches(n)
        best = fastest([Case(str(size), partial(way, size)) for size in sizes])
        cases.append(Case(f"{name} (micro-batch {best.name})", best.run))
    notes = [
        f"{n} records; the training would choose the engine {chosen.name!r} here.",
        "All give the same sums of gradients clipped once a record (checked before timing).",
        "Each runs at its fastest micro-batch, the limit in its faster order of memory, too.",
        "No optimiser, no noise.",
        "All in one process that, like a training worker, keeps the memory that it frees.",
    ]
    return cases, notes


def _require_equal(name: str, sums: Sums, expected: Sums) -> None:
    error = _norm(sums[key].double() - total for key, total in expected.items())
    relative = error / _norm(iter(expected.values()))
    if not relative < _TOLERANCE:
        raise AssertionError(f"{name} gives other sums than the record engine: {relative:.1e} off")


def _norm(tensors: Iterator[Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt())


def micro_batches(n: int) -> list[int]:
    """Return the micro-batches that are tried for `n` records."""
    return sorted({n, max(n // 2, 1), max(n // 4, 1)})
