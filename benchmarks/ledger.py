"""The cost of the ledger: a charge against a bare commit, an audit against reading the rows."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from privacy.audit import audit_ledger
from privacy.budget import Budget, Component, Reservation
from privacy.budget.identity import DIGEST_DIGITS, Content
from privacy.keystream import os_key
from privacy.ledger import Kind, Ledger
from privacy.mechanisms import SubsampledGaussian

from .timing import Case

_COMPONENT = "dp-sgd"
_DATASET = "bench"
_STEPS = 1_000_000
_BARE = "bare SQLite commit"


def charge_cases(folder: Path) -> tuple[list[Case], list[str]]:
    """Return a commit of SQLite alone, and charges with author, witness and signature added."""
    witness = {"author": "bench", "witness": folder / "head"}
    signed = Ledger.open(folder / "signed.db", os_key(), author="bench", witness=folder / "s.head")
    signed.start_signing(os_key())
    cases = [
        Case(_BARE, committer(folder)),
        Case("charge", charger(Ledger.open(folder / "plain.db", os_key()))),
        Case("charge, author, witness", charger(Ledger.open(folder / "w.db", os_key(), **witness))),
        Case("charge, author, witness, signature", charger(signed)),
    ]
    notes = [
        "SQLite syncs every commit to disk, so these times depend on the disk.",
        "A charge pays for a block of steps (50 by default).",
    ]
    return cases, notes


def audit_cases(folder: Path, rows: int) -> tuple[list[Case], list[str]]:
    """Return reading a ledger of `rows` charges with SQLite alone, verifying and auditing it."""
    ledger = Ledger.open(folder / "long.db", os_key(), author="bench")
    long_ledger(ledger, rows)

    def read() -> int:
        connection = sqlite3.connect(folder / "long.db")
        found = connection.execute("SELECT * FROM umbra_ledger ORDER BY seq").fetchall()
        connection.close()
        return len(found)

    cases = [
        Case("read all rows, sqlite3", read),
        Case("verify the chain", ledger.verify),
        Case("audit", lambda: audit_ledger(ledger)),
    ]
    notes = [
        f"{rows} charges of one run. Every ε is recomputed in the warm-up and cached after it."
    ]
    return cases, notes


def long_ledger(ledger: Ledger, rows: int) -> None:
    """Append `rows` charges in one transaction, since each of its own would sync the disk."""
    reservation, attempt = _begun(Budget(ledger), rows)
    with ledger.transaction() as t:
        for done in range(1, rows + 1):
            body = {"component": _COMPONENT, "steps": 1, "attempt": attempt}
            body["charged"] = {_COMPONENT: done}
            claim = f"charge:{reservation.id}:{done}"
            t.append(Kind.CHARGE, body, _DATASET, reservation.id, claim)


def charger(ledger: Ledger, q: float = 0.1, records: int = 10_000) -> Callable[[], object]:
    """Return a call that charges one step of a mechanism with sampling probability `q`."""
    budget = Budget(ledger)
    reservation, attempt = _begun(budget, _STEPS, q, records)
    return lambda: budget.charge(reservation.id, _COMPONENT, 1, attempt, uuid4().hex)


def committer(folder: Path) -> Callable[[], object]:
    """Return a call that inserts a row with SQLite alone, as durably as the ledger does."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, body TEXT)")
    body = "x" * 500  # as long as a charge's row
    return lambda: connection.execute("INSERT INTO rows (body) VALUES (?)", (body,))


def _begun(
    budget: Budget, steps: int, q: float = 0.1, records: int = 10_000
) -> tuple[Reservation, int]:
    budget.declare(_DATASET, epsilon=1e4, delta=1e-6)
    reservation = budget.reserve(
        "bench",
        _DATASET,
        Content("bench", records, ("0" * DIGEST_DIGITS,)),
        "image",
        records_per_unit=1,
        plan=[Component(_COMPONENT, SubsampledGaussian(q, 10.0, steps))],
        void=False,
        idempotency_key="bench",
    )
    return reservation, budget.begin_attempt(reservation.id, "bench")
