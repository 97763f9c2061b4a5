"""Copies of a data set that ask for a budget of their own.

The budget refuses them. Should it not, the audit of the ledger finds them in the rows.
"""

from unittest import mock

import numpy as np

import privacy.budget.identity
from privacy.audit import audit_ledger
from privacy.budget import Budget, Component
from privacy.budget.identity import content_of
from privacy.errors import BudgetRefused
from privacy.ledger import Kind, Ledger
from privacy.mechanisms import SubsampledGaussian
from privacy.records import LabelledRecords
from tests.privacy.planted.bug import Bug

KEY = bytes(range(32))
N = 400
GRANTED, AUDIT = "the copy got a budget", "the audit of the ledger"


def original():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (N, 4, 4, 1), dtype=np.uint8), np.arange(N) % 10


def exact(images, labels):
    return images, labels


def reordered(images, labels):
    order = np.random.default_rng(1).permutation(N)
    return images[order], labels[order]


def relabelled(images, labels):
    return images, (labels + 1) % 10


def edited(images, labels):
    """Every twentieth image is another one."""
    changed = images.copy()
    changed[::20] = 255 - changed[::20]
    return changed, labels


def blind_bind(t, dataset, partition, content, exact=False):
    """Write down what a name stands for and compare it with nothing."""
    claim = f"bind:{dataset}:{partition}"
    if t.by_claim(claim) is None:
        body = {
            "partition": partition,
            "fingerprint": content.fingerprint,
            "records": content.records,
            "sketch": list(content.sketch),
        }
        t.append(Kind.PARTITION, body, dataset=dataset, claim=claim)


def reserve_for(budget, name, images, labels):
    budget.declare(name, 3.0, 1e-5)
    budget.reserve(
        f"run-{name}",
        name,
        content_of(LabelledRecords(images, labels), KEY),
        "one image",
        records_per_unit=1,
        plan=[Component("dp-sgd", SubsampledGaussian(0.1, 2.0, 10))],
        void=False,
        idempotency_key=name,
    )


def findings(folder, copied):
    """Spend on a data set, then on a copy of it under a name with a fresh budget."""
    ledger = Ledger.open(folder / "ledger.db", KEY)
    try:
        budget, found = Budget(ledger), set()
        reserve_for(budget, "scans", *original())
        try:
            reserve_for(budget, "other-scans", *copied(*original()))
            found.add(GRANTED)
        except BudgetRefused:
            pass
        return found if audit_ledger(ledger).ok else found | {AUDIT}
    finally:
        ledger.close()


def planted_findings(folder, copied):
    with mock.patch.object(privacy.budget.identity, "bind", blind_bind):
        return findings(folder, copied)


BUGS = [
    Bug(
        f"a duplicate data set with a fresh budget: {name}",
        lambda folder, copied=copied: planted_findings(folder, copied),
        lambda folder, copied=copied: findings(folder, copied),
        (GRANTED, AUDIT),
    )
    for name, copied in (
        ("exact", exact),
        ("reordered", reordered),
        ("relabelled", relabelled),
        ("5 % edited", edited),
    )
]
