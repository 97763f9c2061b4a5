"""The program in infra/README.md that moves a ledger, run as it is written there."""

import os
import re
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from privacy.budget import Budget
from privacy.ledger import Ledger

KEY = bytes(range(32))
README = Path(__file__).parents[2] / "infra" / "README.md"


@pytest.fixture(scope="module")
def program():
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", README.read_text(), re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if "OLD_LEDGER" in block]
    return textwrap.dedent(found)


def move(program, old, new):
    environment = os.environ | {"OLD_LEDGER": str(old), "UMBRA_LEDGER_URL": f"sqlite:///{new}"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_row_moves_and_the_new_place_goes_on(program, tmp_path):
    old = Ledger.open(tmp_path / "old.db", KEY)
    Budget(old).declare("faces", 10.0, 1e-5)
    done = move(program, tmp_path / "old.db", tmp_path / "new.db")
    assert done.returncode == 0, done.stderr
    new = Ledger.open(tmp_path / "new.db", KEY)
    assert list(new.rows()) == list(old.rows())
    assert new.verify([old.head()]) == []
    assert Budget(new).odometer("faces").epsilon == 10.0
    Budget(new).declare("hands", 1.0, 1e-5)
    assert new.head().seq == old.head().seq + 1
    again = move(program, tmp_path / "old.db", tmp_path / "new.db")
    assert again.returncode != 0
    assert new.verify() == []


def test_a_broken_ledger_does_not_move(program, tmp_path):
    Ledger.open(tmp_path / "old.db", KEY).close()
    connection = sqlite3.connect(tmp_path / "old.db")
    connection.execute("DROP TRIGGER umbra_ledger_no_update")
    connection.close()
    assert move(program, tmp_path / "old.db", tmp_path / "new.db").returncode != 0
    assert not (tmp_path / "new.db").exists()
