import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import IntegrityBroken, InvalidRequest
from synth.data import manifest as manifests
from synth.data.manifest import FileEntry, Manifest, ShardEntry, load_manifest, verify
from synth.data.shards import encode_png, plan_shards, write_shard

NAMES = ("a", "b")


@pytest.fixture
def folder(tmp_path):
    plan = plan_shards((5, 4), 4)
    entries = [
        write_shard(
            tmp_path,
            shard,
            len(plan),
            [encode_png(np.full((4, 4, 1), shard.number, dtype=np.uint8))] * len(shard.labels),
            class_names=NAMES,
        )
        for shard in plan
    ]
    Manifest((4, 4, 1), NAMES, (5, 4), tuple(entries)).write(tmp_path)
    return tmp_path


def edit(folder, change):
    path = folder / "manifest.json"
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps(record))


def test_a_sound_data_set_has_no_findings_and_right_totals(folder):
    assert verify(folder) == []
    manifest = load_manifest(folder)
    files = sorted((folder / "data").iterdir())
    assert [entry.file for entry in manifest.shards] == [f"data/{file.name}" for file in files]
    record = json.loads((folder / "manifest.json").read_bytes())
    assert record["rows"] == 9
    assert record["bytes"] == sum(file.stat().st_size for file in files)
    assert record["class_counts"] == [5, 4]


def test_writing_returns_the_hash_and_removes_leftovers(folder):
    leftover = folder / "data" / ".train-00000-of-00003.parquet.00ff00ff00ff.part"
    leftover.write_bytes(b"half")
    assert verify(folder) == []  # a killed writer's file is no part of the data set
    digest = load_manifest(folder).write(folder)
    assert digest == manifests.manifest_sha256(folder)
    assert not leftover.exists()


def test_missing_extra_and_changed_shards_are_named(folder):
    first, second, third = sorted((folder / "data").iterdir())
    first.unlink()
    data = bytearray(second.read_bytes())
    data[100] ^= 1
    second.write_bytes(data)
    third.rename(third.with_name("other.parquet"))
    findings = verify(folder)
    assert findings == [
        f"missing: data/{first.name}",
        f"changed: data/{second.name} does not have the sha256 of the manifest",
        f"missing: data/{third.name}",
        "extra: data/other.parquet is not in the manifest",
    ]


def test_wrong_length_is_named(folder):
    path = min((folder / "data").iterdir())
    path.write_bytes(path.read_bytes() + b"x")
    (finding,) = verify(folder)
    assert finding.startswith(f"changed: data/{path.name} has ")


def test_wrong_row_count_is_found_although_all_hashes_fit(folder):
    def change(record):
        record["shards"][0]["rows"] += 1
        record["rows"] += 1
        record["class_counts"][0] += 1

    edit(folder, change)
    (finding,) = verify(folder)
    assert finding.startswith("rows: data/train-00000-of-00003.parquet holds 4 rows")


def test_wrong_class_counts_are_found_although_all_hashes_fit(folder):
    edit(folder, lambda record: record.update(class_counts=[4, 5]))
    assert verify(folder) == ["rows: the manifest's class counts are not those of its shards"]


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(rows=10),
        lambda record: record.update(bytes=1),
        lambda record: record.update(class_counts=[1, 1]),
        lambda record: record.update(class_names=["a"]),
        lambda record: record.update(format=2),
        lambda record: record.update(more="than there should be"),
        lambda record: record.pop("shards"),
        lambda record: record["shards"].append(record["shards"][0]),
        lambda record: record["shards"][0].update(file="../../etc/passwd"),
        lambda record: record["shards"][0].update(file="/etc/passwd"),
        lambda record: record["shards"][0].update(rows="4"),
        lambda record: record["shards"][0].pop("sha256"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(folder, change):
    edit(folder, change)
    with pytest.raises(IntegrityBroken, match="manifest"):
        load_manifest(folder)
    assert len(verify(folder)) == 1


def test_a_missing_or_garbled_manifest_is_a_finding(folder):
    path = folder / "manifest.json"
    path.write_bytes(b"\xff{")
    assert "damaged" in verify(folder)[0]
    path.unlink()
    assert "missing" in verify(folder)[0]
    with pytest.raises(IntegrityBroken):
        manifests.manifest_sha256(folder)


def test_counts_and_names_must_agree_when_it_is_made():
    shard = ShardEntry("data/x.parquet", 10, "00", 3)
    sound = Manifest((4, 4, 1), NAMES, (1, 2), (shard,), (FileEntry("README.md", 1, "00"),))
    assert (sound.rows, sound.bytes, len(sound.files)) == (3, 10, 2)
    for change in ({"class_counts": (1, 1)}, {"class_names": ("a",)}, {"shards": (shard, shard)}):
        with pytest.raises(InvalidRequest):
            dataclasses.replace(sound, **change)


HOSTILE = (
    "08",
    "1e3",
    "no",
    "2024-01-01",
    "null",
    "a\x85b",
    "a\u2028b",
    "\r\n",
    '"',
    "\\",
    "\x00",
    "é",
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text() | st.sampled_from(HOSTILE), min_size=1, unique=True))
def test_hostile_class_names_load_back(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("manifest")
    counts = (3, *[0] * (len(names) - 1))
    entry = ShardEntry("data/train-00000-of-00001.parquet", 10, "0" * 64, 3)
    written = Manifest((8, 8, 1), tuple(names), counts, (entry,))
    written.write(folder)
    assert load_manifest(folder) == written
