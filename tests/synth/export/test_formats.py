"""The contract that every export format inherits, and what each one looks like."""

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import tarfile
from pathlib import PurePosixPath, PureWindowsPath
from unicodedata import category, normalize

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from privacy.errors import IntegrityBroken, InvalidRequest, UmbraError
from privacy.records import LabelledRecords
from synth.data.manifest import load_manifest
from synth.data.shards import read_shards
from synth.export.documents import verify_export
from synth.export.formats import FORMATS, class_folders, export_dataset

every_format = pytest.mark.parametrize("name", list(FORMATS))


def rows_of(release):
    rows = LabelledRecords.concatenate(read_shards(release))
    return rows.values, rows.labels


@every_format
def test_a_fresh_export_verifies_and_seals_itself(name, release, card, privacy, tmp_path):
    target = tmp_path / "out" / name
    exported = export_dataset(name, release, target, card, privacy)
    assert exported.folder == target
    assert verify_export(target) == []
    digest = hashlib.sha256((target / "manifest.json").read_bytes()).hexdigest()
    statement = json.loads((target / "privacy.json").read_bytes())
    assert exported.manifest_sha256 == digest == statement.pop("manifest_sha256")
    assert statement == privacy
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize("name", ["parquet", "images"])
def test_hugging_face_opens_it_with_labels_and_names(
    name, make_release, card, privacy, tmp_path, load_dataset
):
    release = make_release(channels=3)
    images, labels = rows_of(release)
    export_dataset(name, release, tmp_path / "out", card, privacy)
    data = load_dataset(tmp_path / "out")
    assert list(data) == ["train"]
    feature = data["train"].features["label"]
    if name == "images":  # a folder cannot be called T-shirt/top
        assert feature.names == ["zero", "T-shirt_top", "apple"]
    else:
        assert feature.names == ["zero", "T-shirt/top", "apple"]
    found = {(np.asarray(row["image"]).tobytes(), row["label"]) for row in data["train"]}
    assert found == {
        (image.tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)
    }


@every_format
def test_equal_releases_give_equal_exports(name, release, card, privacy, tmp_path):
    first = export_dataset(name, release, tmp_path / "a", card, privacy)
    second = export_dataset(name, release, tmp_path / "b", card, privacy)
    assert first.manifest_sha256 == second.manifest_sha256


@every_format
def test_an_occupied_target_is_refused_and_untouched(name, release, card, privacy, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("x")
    with pytest.raises(InvalidRequest, match="not empty"):
        export_dataset(name, release, target, card, privacy)
    assert [path.name for path in target.iterdir()] == ["mine"]


@every_format
@pytest.mark.parametrize("damage", ["changed", "missing", "extra", "manifest", "no manifest"])
def test_damaged_input_is_refused(name, damage, release, card, privacy, tmp_path):
    shard = min((release / "data").iterdir())
    if damage == "changed":
        data = bytearray(shard.read_bytes())
        data[50] ^= 1
        shard.write_bytes(data)
    elif damage == "missing":
        shard.unlink()
    elif damage == "extra":
        shutil.copy(shard, shard.with_name("train-00007-of-00003.parquet"))
    elif damage == "manifest":
        path = release / "manifest.json"
        path.write_text(path.read_text().replace('"rows": 5', '"rows": 6', 1))
    else:
        (release / "manifest.json").unlink()
    with pytest.raises(IntegrityBroken):
        export_dataset(name, release, tmp_path / "out", card, privacy)
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


@every_format
def test_a_full_disk_leaves_nothing(name, release, card, privacy, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UmbraError, match="the disk is full"):
        export_dataset(name, release, tmp_path / "out", card, privacy)
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


@every_format
def test_a_void_run_is_exported_on_demand_only_and_says_so(name, release, card, privacy, tmp_path):
    void = privacy | {"void": True}
    with pytest.raises(InvalidRequest, match="void of privacy"):
        export_dataset(name, release, tmp_path / "out", card, void)
    export_dataset(name, release, tmp_path / "out", card, void, allow_void=True)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "no privacy guarantee" in text
    assert "9.99" not in text
    statement = json.loads((tmp_path / "out" / "privacy.json").read_bytes())
    assert statement["void"]
    assert set(statement["epsilon"].values()) == {None}
    assert verify_export(tmp_path / "out") == []


@every_format
def test_every_file_of_an_export_is_sealed(name, release, card, privacy, tmp_path):
    out = tmp_path / "out"
    export_dataset(name, release, out, card, privacy)
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for position in (0, len(data) // 2, len(data) - 1):
            damaged = bytearray(data)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            assert verify_export(out), f"{path.name}, byte {position}"
        path.unlink()
        assert verify_export(out), path.name
        path.write_bytes(data)
    assert verify_export(out) == []
    (out / "more.txt").write_text("x")
    assert verify_export(out) == ["extra: more.txt is not in the manifest"]


@every_format
def test_a_resealed_file_shows_in_the_next_seal(name, release, card, privacy, tmp_path):
    out = tmp_path / "out"
    export_dataset(name, release, out, card, privacy)
    manifest = json.loads((out / "manifest.json").read_bytes())
    text = (out / "README.md").read_text().replace("9.9959", "0.0001").encode()
    (out / "README.md").write_bytes(text)
    (entry,) = [entry for entry in manifest["documents"] if entry["file"] == "README.md"]
    entry.update(bytes=len(text), sha256=hashlib.sha256(text).hexdigest())
    (out / "manifest.json").write_text(json.dumps(manifest))
    (finding,) = verify_export(out)
    assert "sha256 that privacy.json states" in finding


def test_parquet_shards_are_the_release_byte_for_byte(release, card, privacy, tmp_path):
    export_dataset("parquet", release, tmp_path / "out", card, privacy)
    for shard in (release / "data").iterdir():
        assert (tmp_path / "out" / "data" / shard.name).read_bytes() == shard.read_bytes()
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 12


def test_a_shard_that_changes_while_it_is_copied_is_refused(
    release, card, privacy, tmp_path, monkeypatch
):
    copy = shutil.copyfileobj

    def copy_badly(source, sink):
        copy(source, sink)
        sink.seek(0)
        sink.write(b"X")

    monkeypatch.setattr(shutil, "copyfileobj", copy_badly)
    with pytest.raises(IntegrityBroken, match="changed while it was copied"):
        export_dataset("parquet", release, tmp_path / "out", card, privacy)
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_image_files_and_the_label_table_agree_with_the_shards(release, card, privacy, tmp_path):
    out = tmp_path / "out"
    export_dataset("images", release, out, card, privacy)
    images, labels = rows_of(release)
    with (out / "labels.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["label"]) for row in table] == labels.tolist()
    assert {row["class"] for row in table} == {"zero", "T-shirt/top", "apple"}
    for row, image in zip(table, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(out / row["file"])), image[:, :, 0])
    assert len(list((out / "train" / "T-shirt_top").iterdir())) == 3


def test_arrays_are_those_of_the_shards_and_a_source_reads_them(
    make_release, card, privacy, tmp_path
):
    release = make_release(channels=3)
    out = tmp_path / "out"
    export_dataset("npz", release, out, card, privacy)
    images, labels = rows_of(release)
    with np.load(out / "data" / "train.npz") as data:
        assert set(data.files) == {"images", "labels"}
        assert np.array_equal(data["images"], images) and data["images"].dtype == np.uint8
        assert np.array_equal(data["labels"], labels) and data["labels"].dtype == np.int64


def test_tar_files_are_samples_of_image_and_class(make_release, card, privacy, tmp_path):
    release = make_release(channels=3)
    out = tmp_path / "out"
    export_dataset("webdataset", release, out, card, privacy)
    images, labels = rows_of(release)
    found = []
    for path in sorted((out / "data").iterdir()):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert all((m.mtime, m.uid, m.uname) == (0, 0, "") for m in members)
            for png, label in zip(members[::2], members[1::2], strict=True):
                assert png.name.split(".")[0] == label.name.split(".")[0] == f"{len(found):08d}"
                pixels = np.asarray(Image.open(tar.extractfile(png)))
                found.append((pixels, int(tar.extractfile(label).read())))
    assert [label for _, label in found] == labels.tolist()
    assert np.array_equal(np.stack([pixels for pixels, _ in found]), images)
    assert len(list((out / "data").iterdir())) == 3


def test_hugging_face_opens_the_tar_files_as_the_card_says(
    release, card, privacy, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    export_dataset("webdataset", release, out, card, privacy)
    text = (out / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    scope = {}
    exec(program.replace("FOLDER", str(out)), scope)
    images, labels = rows_of(release)
    rows = sorted(scope["samples"], key=lambda row: row["__key__"])
    assert [row["cls"] for row in rows] == labels.tolist()
    assert np.array_equal(np.stack([np.asarray(row["png"]) for row in rows]), images[..., 0])


def test_the_card_of_arrays_shows_how_to_open_them(release, card, privacy, tmp_path):
    out = tmp_path / "out"
    export_dataset("npz", release, out, card, privacy)
    (program,) = re.findall(r"```python\n(.*?)\n```", (out / "README.md").read_text(), re.DOTALL)
    scope = {}
    exec(program.replace("FOLDER", str(out)), scope)
    assert np.array_equal(scope["labels"], rows_of(release)[1])


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["T-shirt/top", "Ankle boot"], ["T-shirt_top", "Ankle boot"]),
        (["a/b", "a_b", "a_b_0"], ["a_b_0", "a_b_1", "a_b_0_2"]),
        (["A", "a"], ["A_0", "a_1"]),
        # `datasets` passes over what begins with two underscores.
        (["..", ".", "été"], ["_0", "_1", "été_2"]),
        (["__background__", "😀", "×"], ["_background__", "😀", "×"]),
        (["../../x", "con\x00"], ["_.._x", "con_"]),
        (["con", "nul.txt", "COM1", "conic"], ["_con", "_nul.txt", "_COM1", "conic"]),
        (["कुत्ता", "e\u0301te\u0301", "08", "no"], ["कुत्ता", "e\u0301te\u0301", "08", "no"]),
        (["é", "e\u0301"], ["é_0", "e\u0301_1"]),
        (["漢" * 128, "漢" * 127], ["漢" * 42 + "_0", "漢" * 42 + "_1"]),
    ],
)
def test_class_folders_are_safe_and_distinct(names, folders):
    assert class_folders(names) == folders


HOSTILE = (
    *("a/b", "..", ".", "CON", "con", "aux.txt", "__background__", "__pycache__", ".hidden", "~"),
    *("😀", "🎉", "+", "-", "×", "÷", "=", "=1+1", "-rf", "no", "null", "08", "1e3", "0x1F", "y"),
    *("<script>alert(1)</script>", "x,y", "it's", 'a"b', "a|b", "a`b", "a*b", "a[b]", "{a}", "a#b"),
    *("a%20b", "a?b=c", "a::b", "a;b", "$HOME", "&", "!", "^", "@x", "(x)", "a  b", "कुत्ता", "é"),
    *("train", "test", "metadata.jsonl", "x.zip", "漢" * 128, "😀" * 128, "a\u200db", "\u202ea"),
)


def image_folder(root):
    """Read images as torchvision's ImageFolder does: classes by the alphabet, none without images.

    Returns the classes and (class, bytes of the image) of every file.
    """
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    found = []
    for name in classes:
        files = sorted(file for file in (root / name).rglob("*") if file.suffix == ".png")
        assert files, f"ImageFolder refuses {name}, which has no image"
        found += [(name, np.asarray(Image.open(file)).tobytes()) for file in files]
    return classes, found


def test_folders_of_every_class_name_load_back_with_the_same_names(
    make_release, card, privacy, tmp_path, load_dataset
):
    counts = tuple(label % 3 for label in range(len(HOSTILE)))
    release = make_release(names=HOSTILE, counts=counts)
    out = tmp_path / "out"
    export_dataset("images", release, out, card, privacy)
    images, labels = rows_of(release)
    folders = class_folders(HOSTILE)
    expected = sorted(
        (folders[label], image.tobytes()) for label, image in zip(labels, images, strict=True)
    )
    data = load_dataset(out)["train"]
    assert data.features["label"].names == folders
    read = [(folders[row["label"]], np.asarray(row["image"]).tobytes()) for row in data]
    assert sorted(read) == expected
    classes, found = image_folder(out / "train")
    assert set(classes) == {name for name, count in zip(folders, counts, strict=True) if count}
    assert sorted(found) == expected
    with (out / "labels.csv").open(newline="", encoding="utf-8") as file:
        table = [(row["class"], row["file"].split("/")[1]) for row in csv.DictReader(file)]
    assert table == [(HOSTILE[label], folders[label]) for label in labels]
    assert load_manifest(out).class_names == HOSTILE
    assert verify_export(out) == []


@pytest.mark.parametrize("counts", [(3,), (0, 4)])
def test_one_class_keeps_its_label(make_release, card, privacy, tmp_path, load_dataset, counts):
    names = ("no", "08")[: len(counts)]
    export_dataset(
        "images", make_release(names=names, counts=counts), tmp_path / "out", card, privacy
    )
    data = load_dataset(tmp_path / "out")["train"]
    assert data.features["label"].names == list(names)
    assert set(data["label"]) == {len(counts) - 1}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=130) | st.sampled_from(HOSTILE), min_size=1, max_size=8))
def test_class_folders_suit_every_file_system(names):
    folders = class_folders(names)
    assert len({normalize("NFD", folder).casefold() for folder in folders}) == len(names)
    for folder in folders:
        assert PurePosixPath(folder).parts == PureWindowsPath(folder).parts == (folder,)
        assert len(folder.encode()) <= 143
        assert folder == folder.strip(" .")
        assert not folder.startswith(("__", "."))
        assert not PureWindowsPath(folder).is_reserved()
        assert not any(category(letter) in ("Cc", "Cs", "Cn", "Zl", "Zp") for letter in folder)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ('=HYPERLINK("https://a")', '\'=HYPERLINK("https://a")'),
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("@SUM(A1:A9)", "'@SUM(A1:A9)"),
        ("+Sheet1!A1", "'+Sheet1!A1"),
        ("=1+1", "=1+1"),
        ("-rf", "-rf"),
        ("(a)", "(a)"),
        ('a,"b"', 'a,"b"'),
    ],
)
def test_no_class_is_a_formula_in_the_label_table(
    make_release, card, privacy, tmp_path, name, written
):
    release = make_release(names=(name, "other"), counts=(1, 1))
    export_dataset("images", release, tmp_path / "out", card, privacy)
    with (tmp_path / "out" / "labels.csv").open(newline="", encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == [written, "other"]


def test_unknown_formats_are_refused_by_name(release, card, privacy, tmp_path):
    with pytest.raises(InvalidRequest, match="images, webdataset, npz was expected, found 'zip'"):
        export_dataset("zip", release, tmp_path / "out", card, privacy)
