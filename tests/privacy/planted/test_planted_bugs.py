"""Every known way to be wrong is planted, and found; what ships goes unfound."""

import pytest

from tests.privacy.planted import copies, dpgen, releases, restarts, scaling, starts, steps

OF_STEPS = [*steps.BUGS, *starts.BUGS, *releases.BUGS]
BUGS = [*OF_STEPS, *restarts.BUGS, *scaling.BUGS, *copies.BUGS, *dpgen.BUGS]

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
    "two starts share their masks",
    "two starts with equal noise",
    "attempt not mixed into the key",
    "one coin for all records",
    "clip beyond C",
    "clip at 2 C where it is far above",
    "norm of the first parameter only",
    "one parameter left out of the norm",
    "noise on some parameters only",
    "noise scaled by the batch",
    "noise of the last step again",
    "warm-up not charged",
    "steps charged when they are over",
    "warm-up: norm of the first channel only",
    "warm-up: clip beyond C",
    "warm-up: divided by the true counts",
    "warm-up: noise on one channel",
    "warm-up: sigma without C",
    "warm-up: one draw for all classes",
    "warm-up: two starts with equal noise",
    "paid counts: a sensitivity of 1/2",
    "paid counts: doubles are one record",
    "paid counts: one draw for all",
    "paid counts: counted by every classifier",
    "paid counts: two classifiers for one charge",
    "paid counts: noise that is rounded to zero",
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
