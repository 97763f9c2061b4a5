"""The audit that opens private images: what it finds, and that nothing of it gets out."""

import json

import numpy as np
import pytest

from pipeline.audit import release
from pipeline.audit.release import audit_release, require_release
from pipeline.home import Home
from pipeline.progress import SilentProgress
from privacy.errors import DataError, IntegrityBroken, InvalidRequest
from privacy.records import LabelledRecords

PRIVATE_HOLDOUT = ("    public: true\n", "    public: false\n")
PUBLIC_DATA = ("  channels: 1\n", "  channels: 1\n  public: true\n")
NO_HOLDOUT = ("  holdout:\n    source: {kind: npz, path: holdout.npz}\n    public: true\n", "")
NO_EVALUATION = ("evaluate:\n  classifiers: [logreg, mlp]\n", "")
PAID = ("classifiers: [logreg, mlp]", "classifiers: [logreg]\n  release: dp")


@pytest.fixture
def made(house, blots_spec):
    def make(*changes):
        return house.finish(house.reserve(blots_spec(*changes)))

    return make


def audit(run):
    # The run lies in its home.
    home = Home.locate({"UMBRA_HOME": str(run.path.parents[1])})
    found = audit_release(home, run, SilentProgress())
    return found, json.loads(found.written.read_text())


def test_private_findings_stay_inside(finished):
    _, run = finished
    found, written = audit(run)
    assert found.written == run.internal / "release-audit.json"
    assert found.public is None
    assert found.to_dict() == {
        "run": run.run_id,
        "written": str(found.written),
        "may_be_shared": False,
        "findings": None,
    }
    assert run.internal.stat().st_mode & 0o777 == 0o700
    assert "prove nothing about differential privacy" in written["caveat"]
    assert set(written["spaces"]) == {"pixels", "gabor"}
    copies = written["spaces"]["pixels"]["copies"]
    counts = [copies[f"{kind}_count"] for kind in ("synthetic", "train", "holdout")]
    assert counts == [12, 40, 20]
    assert copies["exact_train"] == 0


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ([PUBLIC_DATA], True),
        ([PUBLIC_DATA, PRIVATE_HOLDOUT], False),
        ([PRIVATE_HOLDOUT], False),
        ([], False),
    ],
)
def test_only_where_all_images_are_public_may_it_be_shown(made, changes, shared):
    found, written = audit(made(*changes))
    assert (found.public is not None) == shared
    if shared:
        assert json.loads(json.dumps(found.public)) == written


def test_planted_copies_are_found(blots, made, monkeypatch):
    run = made(NO_EVALUATION)
    train = np.load(blots / "train.npz")["images"]
    planted = [
        LabelledRecords(images, np.zeros(len(images), np.int64))
        for images in (train[:9], 255 - train[:3])
    ]
    monkeypatch.setattr(release, "read_shards", lambda folder: iter(planted))
    _, written = audit(run)
    assert set(written["spaces"]) == {"pixels"}
    found = written["spaces"]["pixels"]
    assert (found["copies"]["exact_train"], found["copies"]["exact_holdout"]) == (9, 0)
    assert found["membership"]["nearest"]["auc"] > 0.55
    assert found["membership"]["nearest"]["train_count"] == 40


def test_other_images_than_the_runs_are_refused(finished, monkeypatch):
    _, run = finished
    source = type(run.spec().data.source)
    batches = source.batches

    def changed(self, *sizes):
        for batch in batches(self, *sizes):
            values = batch.values.copy()
            values[0, 0, 0, 0] ^= 1
            yield LabelledRecords(values, batch.labels)

    monkeypatch.setattr(source, "batches", changed)
    with pytest.raises(DataError, match="is not the one that the budget was reserved for"):
        audit(run)
    assert not (run.internal / "release-audit.json").exists()


def test_a_holdout_that_was_paid_for_must_be_the_same(house, blots_spec, monkeypatch):
    run = house.reserve(blots_spec(PAID, PRIVATE_HOLDOUT))
    spec = run.spec()
    train, holdout = release._private(run, spec)
    assert (len(train), len(holdout)) == (40, 20)
    source = type(spec.data.source)
    batches = source.batches

    def changed(self, *sizes):
        for batch in batches(self, *sizes):
            values = batch.values.copy()
            values[0, 0, 0, 0] ^= len(values) == 20
            yield LabelledRecords(values, batch.labels)

    monkeypatch.setattr(source, "batches", changed)
    with pytest.raises(DataError, match="reserved for"):
        release._private(run, spec)


@pytest.mark.parametrize("name", ["run.key", "train-content"])
def test_notes_of_the_run_that_are_gone(finished, name):
    """A missing key must not be drawn anew: the images would then look like others."""
    _, run = finished
    (run.internal / name).unlink()
    with pytest.raises(IntegrityBroken, match=f"missing: internal/{name}"):
        audit(run)
    assert not (run.internal / name).exists()


def test_a_damaged_shard(finished):
    _, run = finished
    shard = next((run.release / "data").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityBroken, match=shard.name):
        audit(run)


def test_what_cannot_be_audited(house, made, blots_spec):
    with pytest.raises(InvalidRequest, match="no finished images"):
        require_release(house.reserve(blots_spec()))


def test_without_a_holdout_there_is_nothing_to_compare_with(made):
    with pytest.raises(InvalidRequest, match=r"names no data\.holdout"):
        require_release(made(NO_HOLDOUT, NO_EVALUATION))


def test_features_that_are_not_there(made, tmp_path):
    run = made(("classifiers: [logreg, mlp]", f"features: {tmp_path}/none.pt"))
    with pytest.raises(InvalidRequest, match=r"evaluate\.features"):
        audit(run)
