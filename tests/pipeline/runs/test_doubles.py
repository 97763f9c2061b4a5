"""Records that are equal: counted, told without a private figure, dropped where that is asked."""

import json

import numpy as np
import pytest

from pipeline.runs.dataset_identity import HOLDOUT, TRAIN, load_partition
from pipeline.runs.engine import submit
from pipeline.runs.ingest import describe_doubles
from privacy.errors import BudgetRefused, DataError
from privacy.ledger.records import Facts

PUBLIC = Facts(public=True, public_holdout=True)


@pytest.fixture
def spec_of(blots_spec, tmp_path):
    """A spec on 40 records, 3 of them repeated, with 2 of them in a holdout that repeats one."""

    def make(*changes, reverse=False, relabelled=0):
        rng = np.random.default_rng(7)
        images = rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
        labels = np.arange(60) % 2
        train = [*range(37), 0, 0, 1]
        holdout = [*range(37, 54), 37, 5, 6]
        for name, given in (("train", train), ("holdout", holdout)):
            rows = given[::-1] if reverse else given
            own = labels[rows].copy()
            if name == "train" and relabelled:
                own[-1] = 1 - own[-1]
            np.savez(tmp_path / f"{name}.npz", images=images[rows], labels=own)
        paths = [(f"path: {name}.npz", f"path: {tmp_path}/{name}.npz") for name in (TRAIN, HOLDOUT)]
        return blots_spec(*paths, *changes)

    return make


DROPPED = ("  records: 40", "  records: 35\n  drop_doubles: true")


def test_they_are_counted_inside_and_told(house, spec_of):
    house.budget.declare("blots", 8.5, 1e-3, PUBLIC)
    run = submit(spec_of(), house.home)
    counts = {"in the training set": 3, "in the holdout": 1, "in both": 2}
    assert json.loads((run.internal / "doubles.json").read_text()) == counts
    told = describe_doubles(run, house.budget)
    assert "3 in the training set, 1 in the holdout, 2 in both" in told
    assert "data.drop_doubles: true" in told


def test_nothing_of_private_images_is_told(house, spec_of):
    """Said only where there are doubles, "some" would be an exact bit about private records."""
    house.budget.declare("blots", 8.5, 1e-3, Facts())
    run = submit(spec_of(("    public: true", "    public: false")), house.home)
    assert all(json.loads((run.internal / "doubles.json").read_text()).values())
    assert describe_doubles(run, house.budget) == ""


def test_without_doubles_nothing_is_told(house, blots_spec):
    run = house.reserve(blots_spec())
    assert describe_doubles(run, house.budget) == ""


def test_dropped_a_private_set_and_a_public_holdout_share_nothing(house, spec_of):
    house.budget.declare("blots", 8.5, 1e-3, Facts(public_holdout=True))
    with pytest.raises(BudgetRefused, match="drop_doubles: true"):
        submit(spec_of(), house.home)
    with pytest.raises(DataError, match="declares N = 40, the source holds 35 without doubles"):
        submit(spec_of(("  records: 40", "  records: 40\n  drop_doubles: true")), house.home)
    run = submit(spec_of(DROPPED), house.home)
    assert set(json.loads((run.internal / "doubles.json").read_text()).values()) == {0}
    data = run.spec().data
    train, holdout = load_partition(data, TRAIN), load_partition(data, HOLDOUT)
    assert (len(train), len(holdout)) == (35, 19)
    kept = {value.tobytes() for value in train.values}
    assert len(kept) == 35 and kept.isdisjoint(value.tobytes() for value in holdout.values)
    assert house.budget.shown(run.state().reservation_id).holdout


def test_what_is_kept_does_not_depend_on_the_order(house, spec_of):
    house.budget.declare("blots", 8.5, 1e-3, Facts(public_holdout=True))
    for reverse in (False, True):
        run = submit(spec_of(DROPPED, reverse=reverse), house.home)
        house.budget.settle(run.state().reservation_id)
    assert house.kinds().count("partition") == 1


def test_another_label_is_another_record(spec_of):
    data = spec_of(DROPPED, relabelled=1).data
    assert len(load_partition(data, TRAIN)) == 36


def test_a_private_holdout_decides_nothing_of_the_training_set(spec_of):
    data = spec_of(DROPPED, ("    public: true", "    public: false")).data
    assert len(load_partition(data, TRAIN)) == 37
