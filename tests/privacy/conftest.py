import pytest

from privacy.ledger import Ledger

KEY = bytes(range(32))


@pytest.fixture
def ledger(tmp_path):
    """A new SQLite ledger."""
    opened = Ledger.open(tmp_path / "ledger.db", KEY)
    yield opened
    opened.close()
