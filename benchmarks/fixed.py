"""The costs of a private step that do not depend on its batch: noise, mask and ledger."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from privacy.keystream import os_key
from privacy.ledger import Ledger
from privacy.noise import SecureGaussian, privatize
from privacy.poisson import PoissonSampler

from .ledger import charger, committer
from .steps import limit, records_in
from .timing import Case
from .workload import Workload


def fixed_cases(workload: Workload, seconds: float, folder: Path) -> tuple[list[Case], list[str]]:
    """Return the non-private step of B records and, beside it, what privacy adds to each step.

    Args:
        workload: the size.
        seconds: that the non-private step is measured for, at least.
        folder: of the ledger.
    """
    B, N, n = workload.batch, workload.dataset, records_in(workload, seconds)
    noise, draw = _noise(workload)
    mask, choose = _mask(workload)
    charge = charger(Ledger.open(folder / "ledger.db", os_key()), B / N, N)
    commit = committer(folder)

    def all_three() -> None:
        charge()
        mask()
        noise()

    cases = [
        limit(workload, n, weight=B / n),
        Case("torch.randn, float32", draw),
        Case("secure noise, float64", noise, peer="torch.randn, float32"),
        Case("numpy random mask", choose),
        Case("keyed Poisson mask", mask, peer="numpy random mask"),
        Case("bare SQLite commit", commit),
        Case("ledger charge (SQLite)", charge, peer="bare SQLite commit"),
        Case("charge, mask and noise", all_three),
    ]
    notes = [
        f"The step has B = {B} of N = {N} records: measured with {n} records, times B/n.",
        "A charge pays for a block of steps (50 by default); here it is compared with one step.",
        "SQLite syncs every commit to disk, so the ledger's times depend on the disk.",
    ]
    return cases, notes


def _noise(workload: Workload) -> tuple[Callable[[], object], Callable[[], object]]:
    shapes = {name: p.shape for name, p in workload.denoiser().named_parameters()}
    sums = {
        name: torch.zeros(shape, dtype=torch.float64, device=workload.kind)
        for name, shape in shapes.items()
    }
    source = SecureGaussian()
    return (
        lambda: privatize(sums, 1.0, 1.0, source),
        lambda: [torch.randn(shape, device=workload.kind) for shape in shapes.values()],
    )


def _mask(workload: Workload) -> tuple[Callable[[], object], Callable[[], object]]:
    q = workload.batch / workload.dataset
    ids = np.arange(workload.dataset)
    sampler, generator = PoissonSampler(os_key(), 1, q), np.random.default_rng(0)
    return (
        lambda: sampler.mask(0, ids),
        lambda: generator.random(workload.dataset) < q,
    )
