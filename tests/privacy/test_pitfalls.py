"""Every test that PITFALLS.md names exists, and every planted bug is a pitfall."""

import ast
import re
from pathlib import Path

import pytest

from tests.privacy.planted.test_planted_bugs import BUGS, MUST_BE_CAUGHT

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "privacy" / "PITFALLS.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| mistake")
]


def _defined(path):
    """Names of a file's tests: functions, classes, and methods as Class::method."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (
                f"{node.name}::{inner.name}" for inner in node.body if hasattr(inner, "name")
            )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_what_prevents_or_catches_a_pitfall_exists(row):
    held = row.split("|")[4]
    planted = re.findall(r"planted\[(.*?)\]", held)
    named = re.findall(r"`(tests/[^`]+)`", held)
    assert planted or named
    for name in planted:
        assert any(bug.name.startswith(name) for bug in BUGS), name
    for name in named:
        file, _, inner = name.partition("::")
        assert (ROOT / file).exists(), file
        assert not inner or inner in set(_defined(ROOT / file)), name


def test_every_planted_bug_is_a_pitfall():
    text = "".join(ROWS)
    assert [name for name in MUST_BE_CAUGHT if f"planted[{name}]" not in text] == []
