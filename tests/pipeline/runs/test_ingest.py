import gc
import shutil
import weakref
from functools import partial

import numpy as np
import pytest

from pipeline.plan import plan
from pipeline.runs.directory import RunDirectory
from pipeline.runs.ingest import give_back, ingest
from pipeline.runs.ledger_access import recorded_heads
from privacy.budget.identity import fingerprint
from privacy.errors import BudgetRefused, DataError, UmbraError
from privacy.records import LabelledRecords

# The holdout's, which the run will open, and the training set's.
CONTENTS = ["content", "holdout", "content", "partition"]


def test_it_reserves_for_exactly_these_records(house, blots_spec):
    run = house.reserve(blots_spec())
    assert house.kinds() == ["genesis", "declare", "facts", *CONTENTS, "order", "reserve"]
    (row,) = house.budget.ledger.rows(reservation=run.state().reservation_id)
    loaded = run.spec().data.source.load(8, 1, ("round", "square"))
    assert row.content["fingerprint"] == fingerprint(loaded, house.key)
    assert row.content["spec"] == run.spec().sha256()
    assert row.content["records"] == 40
    assert run.state().is_done("ingest")
    assert recorded_heads(run) == [row.head]


def test_workers_can_tell_the_data_without_the_homes_key(house, blots_spec):
    run = house.reserve(blots_spec())
    run_key = (run.internal / "run.key").read_bytes()
    assert run_key != house.key
    loaded = run.spec().data.source.load(8, 1, ("round", "square"))
    content = (run.internal / "train-content").read_text()
    assert content == fingerprint(loaded, run_key)


def test_again_reserves_once(house, blots_spec):
    spec = blots_spec()
    run = house.reserve(spec)
    first = run.state().reservation_id
    run.update(reservation_id=None, stages=())  # as after a crash in between
    ingest(run, spec, plan(spec, trial=False), house.key, house.budget)
    assert run.state().reservation_id == first
    assert house.kinds().count("reserve") == 1


def test_another_number_of_records(house, blots_spec):
    with pytest.raises(DataError, match="declares N = 41, the source holds 40"):
        house.reserve(blots_spec(("records: 40", "records: 41")))
    assert house.kinds() == ["genesis", "declare", "facts"]


def test_a_copy_under_another_name(house, blots_spec, blots, tmp_path):
    house.reserve(blots_spec())
    house.budget.declare("other", 8.5, 1e-3)
    with np.load(blots / "train.npz") as data:
        order = np.random.default_rng(0).permutation(40)
        np.savez(tmp_path / "copy.npz", images=data["images"][order], labels=data["labels"][order])
    renamed = blots_spec(
        ("  name: blots\n", "  name: other\n"), ("path: train.npz", f"path: {tmp_path}/copy.npz")
    )
    with pytest.raises(BudgetRefused, match="content of the data set 'blots' under another name"):
        house.reserve(renamed)
    assert house.kinds().count("reserve") == 1


def test_a_run_that_could_not_remember_finds_what_it_reserved(house, blots_spec, monkeypatch):
    def full(self, **changes):
        raise UmbraError("cannot write the run folder: No space left on device")

    spec = blots_spec()
    house.declare(spec)
    run = house.home.new_run(spec)
    reserve = partial(ingest, run, spec, plan(spec, trial=False), house.key, house.budget)
    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "update", full)
        with pytest.raises(UmbraError, match="No space"):
            reserve()
    assert run.state().reservation_id is None
    assert house.budget.odometer("blots").open_reservations == 1
    reserve()
    assert house.budget.charged_steps(run.state().reservation_id) == {"dp-sgd": 0}
    assert house.kinds().count("reserve") == 1


@pytest.mark.parametrize(
    ("lost", "error", "words"),
    [
        ((), DataError, "the holdout changed since run"),
        # Somebody clears the folder's records too: the ledger still knows what was opened.
        (("holdout-content", "train-content", "run.key"), BudgetRefused, "Restore it, or give"),
    ],
)
def test_a_holdout_that_is_swapped_after_a_crash_is_refused(
    house, blots_spec, blots, tmp_path, lost, error, words
):
    """Private images would be shown as those of the public holdout that was opened."""
    file = tmp_path / "held.npz"
    shutil.copy(blots / "holdout.npz", file)
    spec = blots_spec(("path: holdout.npz", f"path: {file}"))
    run = house.reserve(spec)
    run.update(reservation_id=None, stages=())  # as after a crash in between
    shutil.copy(blots / "train.npz", file)
    for name in lost:
        (run.internal / name).unlink()
    before = house.kinds()
    with pytest.raises(error, match=words):
        ingest(run, spec, plan(spec, trial=False), house.key, house.budget)
    assert house.kinds() == before and run.state().reservation_id is None


def test_what_was_reserved_can_be_given_back_whatever_the_run_remembers(house, blots_spec):
    run = house.reserve(blots_spec())
    run.update(reservation_id=None, stages=())
    (settled,) = give_back(run, house.budget).values()
    assert settled.refunded == {"dp-sgd": 4}
    assert house.budget.odometer("blots").left == 8.5
    assert give_back(house.home.new_run(blots_spec()), house.budget) == {}


def test_no_record_is_held_afterwards(house, blots_spec, monkeypatch):
    """The driver goes on for as long as the run takes."""
    read, shipped = weakref.WeakSet(), LabelledRecords.__post_init__
    seen = []

    def noted(self):
        shipped(self)
        read.add(self)
        seen.append(len(self))

    monkeypatch.setattr(LabelledRecords, "__post_init__", noted)
    house.reserve(blots_spec())
    gc.collect()
    assert 40 in seen
    assert len(read) == 0
