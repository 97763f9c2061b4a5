"""The cost of clipping: each way to clipped per-record gradients against the non-private step.

All run as in a training: in all workers at the same time, with equally many records each.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from statistics import median

import torch
from torch import Tensor

from privacy.clipping import add_to, zero_sums
from privacy.gradients import ENGINES, choose
from privacy.gradients.base import GradientEngine, RecordLoss, trainable
from synth.preconditioning import Denoiser

from .opacus_peer import OpacusPeer
from .timing import Case, fastest, size_for
from .worker import Workers
from .workload import Workload

LIMIT = "non-private step"
_OPACUS = "Opacus, K forwards"
_ORDERS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
_LEAST_PIXELS = 2**14  # of all views in a step
_TOLERANCE = 1e-4  # relative L2, float32 throughout; a second clip or a lost view is far beyond

Sums = dict[str, Tensor]


def non_private(denoiser: Denoiser, records: tuple[Tensor, ...], micro_batch: int) -> None:
    """Run a plain backward pass of the mean loss over all records and views: the lower bound."""
    n, views = records[2].shape
    for image, label, sigma, noise in zip(*(p.split(micro_batch) for p in records), strict=True):
        noisy = (image[:, None] + noise).flatten(0, 1)
        levels = sigma.flatten()
        denoised = denoiser(noisy, levels, label.repeat_interleave(views))
        squared = (denoised - image.repeat_interleave(views, 0)).square().sum(dim=(1, 2, 3))
        ((denoiser.preconditioning.weight(levels) * squared).sum() / (n * views)).backward()
    for parameter in denoiser.parameters():
        parameter.grad = None


def records_in(workload: Workload, seconds: float) -> int:
    """Return how many records make a non-private step take at least so many seconds here."""
    denoiser = workload.denoiser()

    def step(n: int) -> None:
        non_private(denoiser, workload.records(n), n)

    # On a busy machine one record may take long enough; an engine needs several small ones.
    floor = _LEAST_PIXELS // (workload.network.size**2 * workload.views)
    return max(floor, size_for(seconds, step))


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
    """Return the denoiser in each memory format, which its feature maps follow."""
    return {n: workload.denoiser().to(memory_format=order) for n, order in _ORDERS.items()}


def step_cases(
    workload: Workload, seconds: float, workers: Workers
) -> tuple[list[Case], list[str]]:
    """Return the non-private step, each engine and Opacus on the same records and views; notes.

    Each runs at its fastest micro-batch, the non-private step also in its faster memory format.

    Args:
        workload: the size.
        seconds: that the non-private step takes at least.
        workers: to measure in.

    Raises:
        AssertionError: the sums of one of them differ from the others'.
    """
    n = min(workers(records_in, workload, seconds))

    def at_best(name: str, ways: tuple[str, ...]) -> Case:
        every = [(way, size) for way in ways for size in micro_batches(n)]
        best = fastest(
            [Case(str(size), partial(workers, _run, workload, n, way, size)) for way, size in every]
        )
        return Case(f"{name} (micro-batch {best.name})", best.run)

    chosen = _chosen(workload).name
    private = (*ENGINES, _OPACUS)
    for way in private:
        workers(_check, workload, n, way)
    cases = [at_best(LIMIT, tuple(_ORDERS)), *(at_best(way, (way,)) for way in private)]
    notes = [
        f"{n} records a worker; the training would choose the engine {chosen!r} here.",
        f"Workers: {workers.count}, each a process with {workers.threads} thread(s), that work at "
        "the same time.",
        "All return the same sums of per-record clipped gradients (checked before timing).",
        "Each runs at its fastest micro-batch, the first also in its faster memory format.",
        "Without optimiser, noise and exchange between workers.",
    ]
    return cases, notes


def micro_batches(n: int) -> list[int]:
    """Return the micro-batches that are tried for `n` records."""
    return sorted({n, max(n // 4, 1)})


def _chosen(workload: Workload) -> GradientEngine:
    return choose(workload.network.size**2, workload.views, workload.kind, "float32")


def sum_of_clipped(
    engine: GradientEngine,
    denoiser: Denoiser,
    loss: RecordLoss,
    records: tuple[Tensor, ...],
    clip_norm: float,
    micro_batch: int,
) -> Sums:
    """Return an engine's sum over the records, a micro-batch at a time."""
    sums = zero_sums(trainable(denoiser))
    for part in zip(*(p.split(micro_batch) for p in records), strict=True):
        add_to(sums, engine.sum_of_clipped(denoiser, loss, part, clip_norm, micro_batch))
    return sums


def _run(workload: Workload, n: int, way: str, micro_batch: int) -> None:
    _steps(workload, n)[way](micro_batch)


@cache
def _steps(workload: Workload, n: int) -> dict[str, Callable[[int], Sums | None]]:
    """Return, in a worker, every way to a step of its records, by name and given a micro-batch."""
    denoiser, records, loss = workload.denoiser(), workload.records(n), workload.loss()
    single = zip(*(p.split(1) for p in records), strict=True)
    gradients = [ENGINES["record"].sum_of_clipped(denoiser, loss, one, 1e9, 1) for one in single]
    norms = [_norm(iter(gradient.values())) for gradient in gradients]
    clip_norm = median(norms)  # half of the records are clipped

    @cache
    def engine(name: str, size: int) -> GradientEngine:
        # One for each size: what is captured is made anew when the size changes.
        return type(ENGINES[name])()

    def by_engine(name: str, size: int) -> Sums:
        return sum_of_clipped(engine(name, size), denoiser, loss, records, clip_norm, size)

    def plain(own: Denoiser, size: int) -> None:
        non_private(own, records, size)

    return {
        **{order: partial(plain, own) for order, own in in_each_order(workload).items()},
        **{name: partial(by_engine, name) for name in ENGINES},
        _OPACUS: partial(OpacusPeer(denoiser, clip_norm).sums, records),
    }


def _check(workload: Workload, n: int, way: str) -> None:
    steps = _steps(workload, n)
    expected, sums = steps["record"](n), steps[way](n)
    assert expected is not None and sums is not None
    error = _norm(sums[key].double() - total for key, total in expected.items())
    relative = error / _norm(iter(expected.values()))
    if not relative < _TOLERANCE:
        raise AssertionError(
            f"{way} does not agree with the record engine: {relative:.1e} relative error"
        )


def _norm(tensors: Iterator[Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt())
