"""The documents name files that exist, and ARCHITECTURE.md the lines where noise is added."""

import re

import pytest

from benchmarks.house import ROOT, product_files

_TEXT = (ROOT / "ARCHITECTURE.md").read_text()
# `file.py:12`: `the code of that line`
_PLACES = re.findall(r"`([\w/]+\.py):(\d+)`[^`\n]*\n?\s*`([^`]+)`", _TEXT)
_ADDS_NOISE = re.compile(r"(?<!def )\b(?:add_noise|privatize|discrete_laplace)\(")


@pytest.mark.parametrize(("name", "line", "code"), _PLACES)
def test_the_line_holds_the_code(name, line, code):
    lines = [text.strip() for text in (ROOT / name).read_text().splitlines()]
    assert code in lines, f"{name} no longer has this line: name the one that adds the noise"
    assert lines[int(line) - 1] == code, f"write {name}:{lines.index(code) + 1}"


def test_no_noise_is_added_elsewhere():
    noise = ROOT / "privacy/noise.py"  # defines add_noise, and privatize by it
    found = {
        (str(path.relative_to(ROOT)), str(number))
        for path in product_files()
        if path != noise
        for number, text in enumerate(path.read_text().splitlines(), 1)
        if _ADDS_NOISE.search(text)
    }
    assert found == {(name, line) for name, line, _ in _PLACES}


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"])
def test_every_file_that_is_named_exists(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:privacy|synth|eval|pipeline|tests|benchmarks|docs)/[\w/.]+)`", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
