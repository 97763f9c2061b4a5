import json

import pytest
from datasets import load_dataset


@pytest.mark.parametrize("form", ["parquet", "images"])
def test_export(umbra, finished, tmp_path, form):
    house, run = finished
    result = umbra("export", run.run_id, tmp_path / "out", "--format", form, "--json")
    assert (result.code, result.err) == (0, "")
    said = json.loads((tmp_path / "out" / "privacy.json").read_text())
    assert result.json == {
        "folder": str(tmp_path / "out"),
        "manifest_sha256": said["manifest_sha256"],
    }
    assert house.kinds()[-1] == "export"
    rows = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == 12 and rows.features["label"].names == ["round", "square"]
    assert umbra("audit", tmp_path / "out").code == 0


def test_for_a_person(umbra, finished, tmp_path):
    _, run = finished
    result = umbra("export", run.run_id, tmp_path / "out [1]")
    assert (result.code, result.err) == (0, "")
    assert f"exported to {tmp_path}/out [1]\n" in result.out
    assert "recorded in the ledger" in result.out


@pytest.mark.parametrize(
    ("prepare", "arguments", "told"),
    [
        (lambda out: (out.mkdir(), (out / "x").touch()), [], "is not empty"),
        (lambda out: out.touch(), [], "is not a folder"),
        (lambda out: None, ["--format", "gif"], "one of parquet, images, webdataset, npz was"),
    ],
)
def test_refused(umbra, finished, tmp_path, prepare, arguments, told):
    house, run = finished
    before = house.kinds()
    prepare(tmp_path / "out")
    result = umbra("export", run.run_id, tmp_path / "out", *arguments)
    assert (result.code, result.out) == (2, "")
    assert told in result.err
    assert house.kinds() == before


def test_a_void_run(umbra, house, blots_spec, tmp_path):
    run = house.finish(house.reserve(blots_spec(("  delta: 1e-3", "  delta: 1e-3\n  seed: 3"))))
    result = umbra("export", run.run_id, tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert "void" in result.err
    assert not (tmp_path / "out").exists()
    assert umbra("export", run.run_id, tmp_path / "out", "--allow-void").code == 0
    audited = umbra("audit", tmp_path / "out")
    assert audited.code == 0
    assert "void run was exported as void" in audited.out


def test_an_unfinished_run(umbra, house, blots_spec, tmp_path):
    run = house.reserve(blots_spec())
    result = umbra("export", run.run_id, tmp_path / "out")
    assert result.code == 2
    assert "has no finished images" in result.err and "umbra resume" in result.err


def test_a_damaged_shard(umbra, finished, tmp_path):
    house, run = finished
    next((run.release / "data").glob("*.parquet")).write_bytes(b"PAR1")
    result = umbra("export", run.run_id, tmp_path / "out", "--json")
    assert result.code == result.json["exit_code"] == 4
    assert "train-00000-of-00003.parquet" in result.err or "parquet" in result.err
    assert not (tmp_path / "out").exists()
    assert "export" not in house.kinds()


def test_a_place_that_cannot_be_written(umbra, finished, tmp_path):
    house, run = finished
    (tmp_path / "file").touch()
    result = umbra("export", run.run_id, tmp_path / "file" / "out")
    assert result.code == 1
    assert "unexpected" not in result.err and "file" in result.err
    assert "export" not in house.kinds()
