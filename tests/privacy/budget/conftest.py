import hashlib
from pathlib import Path

import pytest

from privacy.accounting import accountant
from privacy.accounting.base import round_up
from privacy.audit.replay import Replay
from privacy.budget import Budget, Component
from privacy.budget.identity import Content
from privacy.mechanisms import Gaussian

KEY = bytes(range(32))
DELTA = 1e-5


def _digests(name, numbers):
    return tuple(sorted(hashlib.sha256(f"{name}{i}".encode()).hexdigest()[:16] for i in numbers))


@pytest.fixture
def budget(ledger):
    budget = Budget(ledger)
    budget.declare("digits", 3.0, DELTA)
    return budget


@pytest.fixture
def content():
    """A content without its images: 20 digests of a name, and those it shares with another."""

    def make(name="digits", records=1500, shares=0, of="digits"):
        sketch = _digests(of, range(shares)) + _digests(name, range(20 - shares))
        return Content(f"print-{name}-{shares}", records, tuple(sorted(sketch)))

    return make


@pytest.fixture
def plan():
    def make(sigma=10.0, steps=10, **more):
        parts = [Component("train", Gaussian(sigma, steps))]
        return parts + [Component(name, mechanism) for name, mechanism in more.items()]

    return make


@pytest.fixture
def reserve(budget, content, plan):
    def ask(key="k1", **changes):
        asked = {
            "run_id": "run-1",
            "dataset": "digits",
            "content": content(),
            "unit": "one image",
            "records_per_unit": 1,
            "plan": plan(),
            "void": False,
            "idempotency_key": key,
        }
        return budget.reserve(**{**asked, **changes})

    return ask


@pytest.fixture
def begun(budget, reserve):
    """A reservation whose first attempt has begun."""

    def ask(key="k1", **changes):
        held = reserve(key, **changes)
        assert budget.begin_attempt(held.id, "first") == 1
        return held

    return ask


@pytest.fixture
def stored(tmp_path):
    """The bytes of the ledger's file and of its write-ahead log."""

    def read():
        path = Path(tmp_path / "ledger.db")
        return [p.read_bytes() for p in (path, path.with_name("ledger.db-wal")) if p.exists()]

    return read


@pytest.fixture
def unchanged(budget, stored):
    """Not a byte of the file changes while a bad request is refused."""
    before = stored()
    yield
    assert stored() == before
    assert budget.ledger.verify() == []


@pytest.fixture
def findings(ledger):
    """What the replay finds, which shares no code with the budget."""

    def find():
        replay = Replay()
        for row in ledger.rows():
            replay.feed(row)
        return [str(finding) for finding in replay.findings]

    return find


@pytest.fixture
def epsilon():
    def of(*mechanisms):
        return round_up(accountant("rdp").epsilon(mechanisms, DELTA))

    return of
