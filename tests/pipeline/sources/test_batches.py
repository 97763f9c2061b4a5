"""Every source gives the same records in parts as at once, and holds no more than a part."""

import numpy as np
import pytest

from pipeline.sources import DigitsSource, FolderSource, IdxSource, NpzSource, ParquetSource, base
from privacy.errors import DataError
from privacy.records import LabelledRecords
from synth.data.shards import Shard, encode_png, write_shard


def from_shards(toy, folder):
    images = list(map(encode_png, toy.images))
    write_shard(folder, Shard(0, tuple(toy.labels.tolist())), 1, images, class_names=toy.classes)
    return ParquetSource(kind="parquet", path=folder / "data")


def from_columns(toy, folder):
    return NpzSource(kind="npz", path=toy.to_npz(folder, images=np.asfortranarray(toy.images)))


SOURCES = {
    "folder": lambda toy, folder: FolderSource(kind="folder", path=toy.to_folder(folder)),
    "idx": lambda toy, folder: IdxSource(
        kind="idx", **dict(zip(("images", "labels"), toy.to_idx(folder), strict=True))
    ),
    "idx.gz": lambda toy, folder: IdxSource(
        kind="idx", **dict(zip(("images", "labels"), toy.to_idx(folder, zipped=True), strict=True))
    ),
    "npz": lambda toy, folder: NpzSource(kind="npz", path=toy.to_npz(folder)),
    "npz by columns": from_columns,
    "parquet": from_shards,
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("rows", [1, 3, 10])
def test_parts_are_the_whole(name, rows, toy, tmp_path, monkeypatch, same):
    source = SOURCES[name](toy, tmp_path)
    whole = source.load(**toy.spec)
    monkeypatch.setattr(base, "_PART_BYTES", rows * toy.size**2)
    parts = list(source.batches(**toy.spec))
    same(LabelledRecords.concatenate(parts), toy)
    same(whole, toy)
    if name != "npz by columns":
        # A folder's parts go over its classes.
        assert [len(part) for part in parts] == [rows] * (10 // rows) + [10 % rows] * (
            10 % rows > 0
        )


def test_the_digits_come_in_one_part():
    classes = tuple("0123456789")
    (part,) = DigitsSource().batches(8, 1, classes)
    assert np.array_equal(part.values, DigitsSource().load(8, 1, classes).values)


def test_what_is_wrong_with_the_last_part_shows_when_it_is_read(toy, tmp_path, monkeypatch):
    images, labels = toy.to_idx(tmp_path)
    images.write_bytes(images.read_bytes()[:-1])
    monkeypatch.setattr(base, "_PART_BYTES", 4 * toy.size**2)
    parts = IdxSource(kind="idx", images=images, labels=labels).batches(**toy.spec)
    assert [len(next(parts)), len(next(parts))] == [4, 4]
    with pytest.raises(DataError, match="found 359: the file is truncated"):
        next(parts)
