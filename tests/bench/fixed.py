"""What a private step pays once, however many records it sees: noise, mask and ledger."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch

from privacy.bottom_k import DIGEST_DIGITS
from privacy.budget import Budget, Component
from privacy.fingerprint import Content
from privacy.keys import load_or_create_key
from privacy.keystream import os_key
from privacy.ledger import Ledger
from privacy.mechanism import SubsampledGaussian
from privacy.noise import SecureGaussian, privatize
from privacy.poisson import PoissonSampler

from .steps import limit
from .timing import Case
from .workload import Workload

_COMPONENT = "dp-sgd"
_STEPS = 1_000_000


def fixed_cases(workload: Workload, n: int, folder: Path) -> tuple[list[Case], list[str]]:
    """Return the non-private step of B records and, beside it, what privacy adds to each step."""
    B, N = workload.batch, workload.dataset
    noise, draw = _noise(workload)
    mask, choose = _mask(workload)
    charge, commit = charger(folder, B / N, N), committer(folder)

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
        f"The step is one of B = {B} records, out of N = {N}: measured with {n}, times B/n.",
        "A charge pays for a block of steps (50 by default); here it is held against one step.",
        "SQLite syncs every commit to disk: the ledger's times are the disk's.",
    ]
    return cases, notes


def _noise(workload: Workload) -> tuple[Callable[[], object], Callable[[], object]]:
    shapes = {name: p.shape for name, p in workload.denoiser().named_parameters()}
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    source = SecureGaussian()
    return (
        lambda: privatize(sums, 1.0, 1.0, source),
        lambda: [torch.randn(shape) for shape in shapes.values()],
    )


def _mask(workload: Workload) -> tuple[Callable[[], object], Callable[[], object]]:
    q = workload.batch / workload.dataset
    ids = np.arange(workload.dataset)
    sampler, generator = PoissonSampler(os_key(), 1, q), np.random.default_rng(0)
    return (
        lambda: sampler.mask(0, ids),
        lambda: generator.random(workload.dataset) < q,
    )


def charger(folder: Path, q: float, records: int) -> Callable[[], object]:
    """Return a call that charges one step to a new SQLite ledger in `folder`."""
    budget = Budget(Ledger.open(folder / "ledger.db", load_or_create_key(folder / "key")))
    budget.declare("bench", epsilon=1e4, delta=1e-6)
    reservation = budget.reserve(
        "bench",
        "bench",
        Content("bench", records, ("0" * DIGEST_DIGITS,)),
        "image",
        records_per_unit=1,
        plan=[Component(_COMPONENT, SubsampledGaussian(q, 10.0, _STEPS))],
        void=False,
        idempotency_key="bench",
    )
    attempt = budget.begin_attempt(reservation.id, "bench")
    return lambda: budget.charge(reservation.id, _COMPONENT, 1, attempt, uuid4().hex)


def committer(folder: Path) -> Callable[[], object]:
    """Return a call that inserts a row with SQLite alone, as durably as the ledger does."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, body TEXT)")
    body = "x" * 500  # as long as a charge's row
    return lambda: connection.execute("INSERT INTO rows (body) VALUES (?)", (body,))
