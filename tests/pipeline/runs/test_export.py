import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
from datasets import load_dataset
from PIL import Image

from pipeline.audit.ledger import verify_privacy_statement
from pipeline.runs.export import export_run
from pipeline.runs.ledger_access import privacy_statement, recorded_heads
from privacy.errors import BudgetRefused, IntegrityBroken, InvalidRequest, UmbraError
from synth.data.manifest import manifest_sha256
from synth.data.shards import read_shards


@pytest.mark.parametrize("form", ["parquet", "images"])
def test_an_export_opens_by_its_path_alone(finished, tmp_path, form):
    house, run = finished
    folder = house.export(run, tmp_path / "out", form)
    cache = str(tmp_path / "cache")
    rows = load_dataset(str(folder), cache_dir=cache)["train"]
    assert rows.features["label"].names == ["round", "square"]
    assert rows["label"] == [0] * 6 + [1] * 6
    assert rows[0]["image"].size == (8, 8)


def test_pyarrow_reads_the_pixels_that_were_made(finished, tmp_path):
    house, run = finished
    folder = house.export(run, tmp_path / "out")
    table = pyarrow.dataset.dataset(folder / "data").to_table()
    images = [np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in table["image"].to_pylist()]
    made = np.concatenate([shard.values for shard in read_shards(run.release)])
    assert (np.stack(images)[..., np.newaxis] == made).all()


def test_privacy_json_is_what_the_rows_give(finished, tmp_path):
    house, run = finished
    folder = house.export(run, tmp_path / "out")
    said = json.loads((folder / "privacy.json").read_text())
    due = privacy_statement(house.budget, run.state().reservation_id)
    assert said.pop("manifest_sha256") == manifest_sha256(folder)
    assert said.pop("steps") == {"planned": 4, "charged": 4, "trained": 4}
    assert (
        "Steps: 4 trained, 4 charged to the budget, 4 planned" in (folder / "README.md").read_text()
    )
    # The head is that of the moment before the export's own row.
    assert said.pop("head_hash") == str(_head_before_last(house))
    due.pop("head_hash")
    assert said == due
    assert said["mechanisms"][0]["steps"] == 4
    assert said["records"] == 40


def _head_before_last(house):
    return list(house.budget.ledger.rows())[-2].head


def test_the_ledger_records_it_and_the_run_remembers(finished, tmp_path):
    house, run = finished
    folder = house.export(run, tmp_path / "out")
    row = list(house.budget.ledger.rows())[-1]
    assert row.kind == "export"
    assert row.content["manifest"] == manifest_sha256(folder)
    assert row.content["description"] == "parquet export"
    assert recorded_heads(run)[-1] == row.head


def test_a_ledger_that_refuses_leaves_no_folder(finished, tmp_path, monkeypatch):
    house, run = finished
    budget = house.budget

    def refuse(*args, **kwargs):
        assert not (tmp_path / "out").exists()  # nothing may be seen before it is recorded
        raise BudgetRefused("no")

    monkeypatch.setattr(budget, "record_export", refuse)
    with pytest.raises(BudgetRefused):
        export_run(run, budget, tmp_path / "out", "parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_folder_with_something_in_it_is_left_alone(finished, tmp_path):
    house, run = finished
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(InvalidRequest, match="not empty"):
        house.export(run, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    assert "export" not in house.kinds()


def test_an_empty_folder_is_taken(finished, tmp_path):
    house, run = finished
    (tmp_path / "out").mkdir()
    assert (house.export(run, tmp_path / "out") / "privacy.json").exists()


def test_a_run_without_images(house, blots_spec, tmp_path):
    run = house.reserve(blots_spec())
    with pytest.raises(InvalidRequest, match=r"is created and has no finished images.*resume"):
        house.export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_void_run_goes_out_as_void_only(house, blots_spec, tmp_path):
    run = house.finish(house.reserve(blots_spec(("  delta: 1e-3", "  delta: 1e-3\n  seed: 3"))))
    with pytest.raises(InvalidRequest, match="void"):
        house.export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "export" not in house.kinds()
    export_run(run, house.budget, tmp_path / "out", "parquet", allow_void=True)
    said = json.loads((tmp_path / "out" / "privacy.json").read_text())
    assert said["void"] is True
    assert set(said["epsilon"].values()) == {None}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "no privacy guarantee" in card
    assert "under differential privacy" not in card


def test_a_damaged_shard_is_not_passed_on(finished, tmp_path):
    house, run = finished
    shard = next((run.release / "data").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityBroken, match=shard.name):
        house.export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "export" not in house.kinds()


def test_a_damaged_file_of_metrics_is_not_passed_on(finished, tmp_path):
    house, run = finished
    for damaged in ("{", "{}", "[1]", '{"synthetic": 3}'):
        (run.release / "metrics.json").write_text(damaged)
        with pytest.raises(IntegrityBroken, match=r"metrics\.json is damaged"):
            house.export(run, tmp_path / "out")


def test_a_changed_spec_is_not_passed_on(finished, tmp_path):
    house, run = finished
    run.spec_path.write_text(run.spec_path.read_text().replace("ddim", "churn"))
    with pytest.raises(IntegrityBroken):
        house.export(run, tmp_path / "out")


def test_a_full_disk_leaves_nothing(finished, tmp_path, monkeypatch):
    house, run = finished

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(UmbraError, match="disk is full") as caught:
        house.export(run, tmp_path / "out")
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert "export" not in house.kinds()


def test_an_unknown_format(finished, tmp_path):
    house, run = finished
    with pytest.raises(InvalidRequest, match="images, webdataset, npz was expected, found 'gif'"):
        house.export(run, tmp_path / "out", "gif")


def test_the_card_shows_released_measures_alone(finished, tmp_path):
    house, run = finished
    card = (house.export(run, tmp_path / "out") / "README.md").read_text()
    assert "0.8125" in card and "12.5" in card
    # The ceiling was measured with the private training images.
    assert "0.9688" not in card and "ceiling" not in card


def test_an_unknown_format_makes_no_missing_parent(finished, tmp_path):
    house, run = finished
    with pytest.raises(InvalidRequest, match="one of parquet, images"):
        house.export(run, tmp_path / "no" / "such" / "out", "jpeg")
    assert not (tmp_path / "no").exists()


def test_an_export_into_the_working_folder_is_seen_from_within(finished, tmp_path, monkeypatch):
    house, run = finished
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    house.export(run, Path())
    seen = {path.name for path in Path().iterdir()}
    assert "privacy.json" in seen
    assert seen == {path.name for path in (tmp_path / "out").iterdir()}


def test_it_says_which_spec_and_weights_it_is_of(finished, tmp_path):
    house, run = finished
    said = json.loads((house.export(run, tmp_path / "out") / "privacy.json").read_text())
    weights = (run.release / "model" / "weights.safetensors").read_bytes()
    assert said["spec"] == run.state().spec_sha256
    assert said["weights"] == hashlib.sha256(weights).hexdigest()
    for name in ("spec", "weights"):
        changed = verify_privacy_statement({**said, name: "ab" * 32}, house.budget.ledger)
        assert changed == [f"privacy.json does not state the {name} that the ledger's rows give"]
