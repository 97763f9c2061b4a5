"""The script that measures the code counts right."""

import pytest

from benchmarks import house

_MODULE = '''"""A module."""

import os
from pathlib import (
    Path,
)

# A reason.
X = 1  # not on a line of its own


def documented() -> Path:
    """Return a path.

    It is long.
    """
    text = "# no comment"
    return Path(text)


class Bare:
    @property
    def undocumented(self):
        return os.sep

    def _private(self):
        return 0
'''


def test_counts_are_those_of_a_small_tree(tmp_path):
    for package in house.PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "synth/module.py").write_text(_MODULE)
    found = house.measure(tmp_path)
    lines = len(_MODULE.splitlines())
    assert (found.files, found.lines, found.file_median) == (1, lines, lines)
    assert found.body_median == 2  # documented() has 3 lines but for its docstring, the others 2
    assert found.documented == 2 / 4  # module and function; neither the class nor its property
    assert found.comments == 1 / lines
    assert found.imports == 4 / lines


def test_the_tree_names_every_room(capsys):
    house.print_tree()
    shown = capsys.readouterr().out
    for path in house.product_files():
        assert f"  {path.name}" in shown


def test_the_house_keeps_its_sizes():
    found = house.measure()
    assert found.files <= 170
    assert found.comments >= 0.03
    assert found.body_median <= 8
    assert found.body_p90 <= 30


@pytest.mark.slow
def test_few_frames_lead_to_the_clipped_gradient():
    driver, worker = house.frames()
    assert len(driver) + len(worker) <= 14
