import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.sources import ParquetSource
from privacy.errors import DataError
from synth.data.shards import Shard, encode_png, plan_shards, write_shard


def load(path, toy, **change):
    return ParquetSource(kind="parquet", path=path).load(**(toy.spec | change))


def encoded(toy, row, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(toy.pixels(row)).save(buffer, kind)
    return buffer.getvalue()


def plain(toy, path, rows=range(10), **columns):
    """Write rows as any other program might: no metadata, default options."""
    table = {
        "image": [{"bytes": encoded(toy, row), "path": None} for row in rows],
        "label": pa.array([int(toy.labels[row]) for row in rows], pa.int64()),
    }
    pq.write_table(pa.table(table | columns), path)
    return path


@pytest.fixture
def shards(toy, tmp_path):
    plan = plan_shards(np.bincount(toy.labels, minlength=3).tolist(), 4)
    for shard in plan:
        rows = slice(4 * shard.number, 4 * shard.number + 4)
        pngs = [encode_png(image) for image in toy.images[rows]]
        write_shard(tmp_path, shard, len(plan), pngs, class_names=toy.classes)
    return tmp_path


def test_our_own_shards_are_read(toy, shards, same):
    same(load(shards, toy), toy)
    same(load(shards / "data", toy), toy)


def test_plain_files_with_any_integer_labels_are_read(toy, rgb_toy, tmp_path, same):
    same(load(plain(toy, tmp_path / "a.parquet"), toy), toy)
    same(load(plain(rgb_toy, tmp_path / "b.parquet"), rgb_toy), rgb_toy)
    for number, kind in enumerate((pa.large_binary(), pa.binary_view())):
        rows = [{"bytes": encoded(toy, row)} for row in range(10)]
        column = pa.array(rows, pa.struct({"bytes": kind}))
        same(load(plain(toy, tmp_path / f"{number}.parquet", image=column), toy), toy)
    small = pa.array(toy.labels, pa.uint8())
    same(load(plain(toy, tmp_path / "c.parquet", label=small), toy), toy)


def test_what_hugging_face_writes_is_read(toy, tmp_path, same, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(toy.classes))
    )
    images = [Image.fromarray(toy.pixels(row)) for row in range(10)]
    data = datasets.Dataset.from_dict({"image": images, "label": toy.labels}, features=features)
    data.to_parquet(str(tmp_path / "hf.parquet"))
    same(load(tmp_path / "hf.parquet", toy), toy)
    with pytest.raises(DataError, match=r"classes \(dog, cat, eel\).*found cat, dog, eel"):
        load(tmp_path / "hf.parquet", toy, classes=("dog", "cat", "eel"))


def test_other_class_names_are_refused(toy, shards):
    with pytest.raises(DataError, match=r"\(cat, dog, fox\) were expected.*found cat, dog, eel\n"):
        load(shards, toy, classes=("cat", "dog", "fox"))


def test_names_that_look_the_same_are_told_apart(toy, tmp_path):
    png = encode_png(toy.images[0])
    write_shard(tmp_path, Shard(0, (0,)), 1, [png], class_names=["e\u0301"])
    with pytest.raises(DataError, match="only Unicode spells them differently"):
        load(tmp_path, toy, classes=("é",))


def test_two_splits_in_one_folder_are_refused(toy, shards):
    plain(toy, shards / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="one split were expected, found test, train"):
        load(shards, toy)


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"label": pa.array([0.5] * 10)}, "label: int64.*found .*label: double"),
        ({"label": pa.array(["cat"] * 10)}, "label: string"),
        ({"image": pa.array([b"x"] * 10)}, "image: binary"),
        ({"image": [{"path": "a.png"}] * 10}, "image: struct<path: string>"),
        ({"image": [{"bytes": None, "path": "a.png"}] * 10}, "damaged|struct|in every row"),
        ({"label": pa.array([0] * 9 + [None], pa.int64())}, "rows without"),
        ({"label": pa.array([0] * 9 + [3], pa.int64())}, "found labels outside"),
        ({"image": [{"bytes": b"junk", "path": None}] * 10}, "row 0: a PNG or JPEG"),
    ],
)
def test_columns_that_do_not_fit_are_refused(toy, tmp_path, columns, text):
    path = plain(toy, tmp_path / "a.parquet", **columns)
    with pytest.raises(DataError, match=text):
        load(path, toy)


def test_a_row_without_an_image_is_refused(toy, tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for missing in (None, {"bytes": None, "path": "a.png"}):
        rows = [{"bytes": encoded(toy, 0), "path": None}] * 9 + [missing]
        path = plain(toy, tmp_path / "a.parquet", image=pa.array(rows, kind))
        with pytest.raises(DataError, match="in every row"):
            load(path, toy)


def test_a_wrong_size_names_the_row(toy, tmp_path):
    large = io.BytesIO()
    Image.new("L", (7, 7)).save(large, "PNG")
    rows = [{"bytes": encoded(toy, row), "path": None} for row in range(9)]
    rows.append({"bytes": large.getvalue(), "path": None})
    path = plain(toy, tmp_path / "a.parquet", image=rows)
    with pytest.raises(DataError, match=r"a\.parquet, row 9: .*6×6 .*found 7×7"):
        load(path, toy)


def test_damaged_missing_and_empty_files_are_refused(toy, shards, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    with pytest.raises(DataError, match="found none"):
        load(other, toy)
    with pytest.raises(DataError, match="found none"):
        load(other / "absent.parquet", toy)
    with pytest.raises(DataError, match="empty"):
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        load(plain(toy, other / "a.parquet", rows=(), image=pa.array([], kind)), toy)
    path = min((shards / "data").iterdir())
    data = path.read_bytes()
    for content in (b"", data[:100], data[:-1], data[:200] + b"\xff" + data[201:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=path.name):
            load(shards, toy)


def place(made, folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, folder / file)
    return folder


@pytest.fixture
def made(toy, tmp_path_factory):
    return plain(toy, tmp_path_factory.mktemp("made") / "a.parquet")


@pytest.mark.parametrize(
    "files",
    [
        ("train.parquet", "test.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("train/part-0.parquet", "validation/part-0.parquet"),
        ("Train/0.parquet", "VAL/0.parquet"),
        ("my_train_set.parquet", "my_dev_set.parquet"),
        ("trainImages.parquet", "testImages.parquet"),
        ("train2024.parquet", "eval2024.parquet"),
        ("trainset.parquet", "testset.parquet"),
        ("X_train.parquet", "X_holdout.parquet"),
        ("traindata/0.parquet", "extra/0.parquet"),
        ("train.parquet", "more.parquet"),
        ("train-00000-of-00002.parquet", "train_extra-00000-of-00001.parquet"),
        ("images-00000-of-00001.parquet", "masks-00000-of-00001.parquet"),
        ("train.parquet", "test/deep/down/0.PARQUET"),
    ],
)
def test_two_splits_are_told_apart_by_any_part_of_a_path(toy, made, tmp_path, files):
    with pytest.raises(DataError, match="files of one split were expected, found "):
        load(place(made, tmp_path / "test-set", *files), toy)


@pytest.mark.parametrize(
    "files",
    [
        ("default/train/0000.parquet", "default/train/0001.parquet"),
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
        ("part-0.parquet", "contest/latest.parquet"),
        ("a.parquet/part-0.parquet", "a.parquet/part-1.parquet"),
        ("label=3/a.parquet", "label=4/a.parquet"),
    ],
)
def test_one_split_in_many_files_is_read(toy, made, tmp_path, files):
    loaded = load(place(made, tmp_path / "test", *files), toy)
    assert np.array_equal(loaded.labels, np.tile(toy.labels, 2))


@pytest.mark.parametrize(
    "copy",
    [
        ".ipynb_checkpoints/train-checkpoint.parquet",
        ".cache/huggingface/a.parquet",
        "_temporary/0/a.parquet",
        "_metadata.parquet",
        "data/.a.parquet",
    ],
)
def test_hidden_copies_are_passed_over(toy, made, tmp_path, same, copy):
    same(load(place(made, tmp_path / ".hidden" / "_set", "train.parquet", copy), toy), toy)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (list(b"\x89PNG"), pa.list_(pa.uint8())),
        ("iVBORw0KGgo=", pa.string()),
        (5, pa.int64()),
    ],
)
def test_bytes_of_another_type_are_refused(toy, tmp_path, value, kind):
    column = pa.array([{"bytes": value, "path": "x"}] * 10, pa.struct({"bytes": kind}))
    with pytest.raises(DataError, match=r"a\.parquet: .*bytes: binary.*expected, found image"):
        load(plain(toy, tmp_path / "a.parquet", image=column), toy)


@pytest.mark.parametrize("content", [b"PAR1" + bytes(20) + b"PAR1", b"version https://git-lfs"])
def test_what_arrow_cannot_read_is_a_clear_error(toy, tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: a Parquet file was expected"):
        load(tmp_path / "a.parquet", toy)


def test_a_file_in_a_folder_is_named_in_a_note_alone(toy, made, tmp_path):
    place(made, tmp_path, "a.parquet", "jane-doe.parquet")
    (tmp_path / "jane-doe.parquet").write_bytes(b"PAR1")
    text = r", file 2 of 2: a Parquet file was expected.*\nin .*jane-doe\.parquet$"
    with pytest.raises(DataError, match=text) as caught:
        load(tmp_path, toy)
    assert "jane" not in str(caught.value)
