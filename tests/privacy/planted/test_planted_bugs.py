"""Every known way to be wrong is planted, and found; what ships goes unfound."""

import pytest

from tests.privacy.planted import copies, dpgen, restarts, scaling, steps

BUGS = [*steps.BUGS, *restarts.BUGS, *scaling.BUGS, *copies.BUGS, *dpgen.BUGS]

MUST_BE_CAUGHT = [
    "clip per view",
    "no clip of one layer",
    "noise missing",
    "noise on every rank",
    "noise divided by the world size",
    "sigma of the wrong step",
    "equal seeds",
    "shuffled instead of Poisson",
    "real batch size as divisor",
    "empty batch skipped",
    "double accumulation",
    "rows that fill a micro-batch up are counted",
    "NaN record taints the sum",
    "noise state reused after restart",
    "attempts not charged",
    "private mean used for scaling",
    "a duplicate data set with a fresh budget",
    "DPGEN's data-dependent randomised response",
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_caught(bug, tmp_path):
    (tmp_path / "shipped").mkdir()
    (tmp_path / "planted").mkdir()
    assert bug.shipped(tmp_path / "shipped") == set()
    assert bug.planted(tmp_path / "planted") >= set(bug.caught_by)


@pytest.mark.parametrize("name", MUST_BE_CAUGHT)
def test_no_known_bug_is_left_out(name):
    assert any(bug.name.startswith(name) and bug.caught_by for bug in BUGS)
