import dataclasses
import hashlib
import io
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from privacy.errors import IntegrityBroken, InvalidRequest, UmbraError
from synth.data import shards
from synth.data.manifest import Manifest, shard_entry
from synth.data.shards import Shard

NAMES = ("zero", "one", "two")


def images_of(count: int, channels: int = 1, size: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def write(folder, labels=(0, 0, 1, 2), number=0, of=1, channels=1, images=None):
    if images is None:
        images = images_of(len(labels), channels)
    pngs = [shards.encode_png(image) for image in images]
    shard = Shard(number, tuple(labels))
    return images, shards.write_shard(folder, shard, of, pngs, class_names=NAMES)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum),
    st.integers(1, 50),
)
def test_plan_has_exact_counts_class_by_class(counts, rows):
    plan = shards.plan_shards(counts, rows)
    assert [shard.number for shard in plan] == list(range(len(plan)))
    labels = [label for shard in plan for label in shard.labels]
    assert labels == [label for label, count in enumerate(counts) for _ in range(count)]
    assert all(len(shard.labels) == rows for shard in plan[:-1])
    assert 1 <= len(plan[-1].labels) <= rows


@pytest.mark.parametrize(("counts", "rows"), [([], 5), ([0, 0], 5), ([3, -1], 5), ([3], 0)])
def test_plan_refuses_nonsense(counts, rows):
    with pytest.raises(InvalidRequest):
        shards.plan_shards(counts, rows)


def test_generators_repeat_and_differ():
    def draw(seed, number):
        return torch.randn(64, generator=shards.shard_generator(seed, number))

    assert torch.equal(draw(1, 5), draw(1, 5))
    draws = torch.stack([draw(seed, number) for seed in (0, 1, 2) for number in range(200)])
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    # Largest of 180,000 correlations of 64 independent normals: about 4.7/8.
    assert correlation.abs().max() < 0.8


def test_generator_seeds_differ_in_the_bits_that_the_cpu_uses():
    seeds = [shards.shard_generator(3, number).initial_seed() for number in range(200)]
    low = [seed % 2**32 for seed in seeds]
    # One odd step for all: 2³² shards pass before a value comes again. Hashes would collide
    # from some 100,000 shards on.
    (step,) = {(after - before) % 2**32 for before, after in itertools.pairwise(low)}
    assert step % 2 == 1
    assert len({seed >> 32 for seed in seeds}) == len(seeds)
    low_bits_only = torch.Generator().manual_seed(seeds[0] % 2**32)
    full = torch.Generator().manual_seed(seeds[0])
    assert torch.equal(torch.rand(8, generator=low_bits_only), torch.rand(8, generator=full))


def test_bytes_survive_the_way_to_floats_and_back():
    images = np.arange(256, dtype=np.uint8).reshape(1, 8, 32, 1)
    floats = shards.from_uint8(images)
    assert floats.shape == (1, 1, 8, 32)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert np.array_equal(shards.to_uint8(floats), images)
    np.testing.assert_allclose(floats.numpy().ravel(), np.arange(256) / 127.5 - 1, atol=1e-7)
    colours = shards.from_uint8(np.array([[[[0, 255, 0]]]], dtype=np.uint8))
    assert colours[:, :, 0, 0].tolist() == [[-1, 1, -1]]


def test_to_uint8_clips_rounds_and_keeps_channels_last():
    x = torch.tensor([-7.0, -1.0, 0.0, 0.0039, 1.0, 7.0]).reshape(1, 3, 2, 1)
    expected = np.array([0, 0, 128, 128, 255, 255], dtype=np.uint8).reshape(1, 3, 2, 1)
    assert np.array_equal(shards.to_uint8(x), expected.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_to_uint8_refuses_pixels_that_are_not_finite(bad):
    x = torch.zeros(2, 1, 4, 4)
    x[1, 0, 2, 2] = bad
    with pytest.raises(UmbraError, match="diverged"):
        shards.to_uint8(x)


@pytest.mark.parametrize("channels", [1, 3])
def test_shards_read_back_as_written(tmp_path, channels):
    first, _ = write(tmp_path, (0, 0, 1), 0, 2, channels)
    second, entry = write(tmp_path, (1, 2), 1, 2, channels)
    assert entry == shard_entry(tmp_path, "data/train-00001-of-00002.parquet")
    assert entry.rows == 2
    pieces = list(shards.read_shards(tmp_path))
    assert [piece.labels.tolist() for piece in pieces] == [[0, 0, 1], [1, 2]]
    assert np.array_equal(pieces[0].values, first)
    assert np.array_equal(pieces[1].values, second)


def test_plain_pyarrow_and_pillow_see_the_hugging_face_schema(tmp_path):
    images, entry = write(tmp_path, channels=3)
    table = pq.read_table(tmp_path / entry.file)
    assert str(table.schema.field("image").type) == "struct<bytes: binary, path: string>"
    assert str(table.schema.field("label").type) == "int64"
    assert all(field.nullable for field in table.schema)
    assert table["label"].to_pylist() == [0, 0, 1, 2]
    png = table["image"][2].as_py()["bytes"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), images[2])


def test_hugging_face_opens_the_folder_by_its_path(tmp_path, load_dataset):
    images, _ = write(tmp_path, (0, 0, 1), 0, 2, images=images_of(3, seed=1))
    write(tmp_path, (1, 2), 1, 2)
    data = load_dataset(tmp_path)["train"]
    assert data.features["label"].names == list(NAMES)
    assert data["label"][:] == [0, 0, 1, 1, 2]
    assert np.array_equal(np.asarray(data[1]["image"]), images[1, :, :, 0])


def test_equal_rows_are_equal_bytes(tmp_path):
    _, first = write(tmp_path / "a", (0, 1, 2) * 500)
    _, second = write(tmp_path / "b", (0, 1, 2) * 500)
    assert first == second
    data = (tmp_path / "a" / first.file).read_bytes()
    assert data == (tmp_path / "b" / second.file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == first.sha256
    images = images_of(1500)
    images[700, 3, 3, 0] ^= 1
    _, third = write(tmp_path / "c", (0, 1, 2) * 500, images=images)
    assert third.sha256 != first.sha256


def test_what_is_not_planned_is_refused(tmp_path):
    shard, pngs = Shard(0, (0, 1)), [shards.encode_png(image) for image in images_of(2)]
    cases = [
        (shard, 0, pngs),
        (dataclasses.replace(shard, number=3), 3, pngs),
        (shard, 1, pngs[:1]),
        (Shard(0, (0, 3)), 1, pngs),
    ]
    for case in cases:
        with pytest.raises(InvalidRequest):
            shards.write_shard(tmp_path, *case, class_names=NAMES)
    assert list(tmp_path.iterdir()) == []


def test_any_changed_byte_of_a_listed_shard_is_found(tmp_path):
    _, entry = write(tmp_path)
    Manifest((8, 8, 1), NAMES, (2, 1, 1), (entry,)).write(tmp_path)
    path = tmp_path / entry.file
    data = path.read_bytes()
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(IntegrityBroken, match="train-00000-of-00001"):
            list(shards.read_shards(tmp_path))


def test_damage_to_the_data_is_found_without_a_manifest(tmp_path):
    images, entry = write(tmp_path)
    path = tmp_path / entry.file
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    column = pq.read_metadata(path).row_group(0).column(2)
    assert column.path_in_schema == "label"
    for position in range(4, footer, 3):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            (found,) = shards.read_shards(tmp_path)
        except IntegrityBroken as error:
            assert path.name in str(error)
        else:  # a byte of a page header that means nothing to a reader
            assert np.array_equal(found.values, images)
            assert found.labels.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("damage", ["truncated", "empty", "absent"])
def test_shards_that_are_not_whole_are_named(tmp_path, damage):
    _, entry = write(tmp_path)
    Manifest((8, 8, 1), NAMES, (2, 1, 1), (entry,)).write(tmp_path)
    path = tmp_path / entry.file
    data = path.read_bytes()
    path.unlink()
    if damage != "absent":
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    with pytest.raises(IntegrityBroken, match="train-00000-of-00001"):
        list(shards.read_shards(tmp_path))
    with pytest.raises(IntegrityBroken, match="train-00000-of-00001"):
        shard_entry(tmp_path, entry.file)


@pytest.mark.parametrize("bad", [-1, 2, 2**40])
def test_labels_without_a_class_are_refused_when_written_and_when_read(tmp_path, bad):
    png = shards.encode_png(np.zeros((4, 4, 1), np.uint8))
    with pytest.raises(InvalidRequest, match="do not agree"):
        shards.write_shard(tmp_path, Shard(0, (0, bad)), 1, [png, png], class_names=("a", "b"))
    entry = shards.write_shard(tmp_path, Shard(0, (0, 1)), 1, [png, png], class_names=("a", "b"))
    path = tmp_path / entry.file
    table = pq.read_table(path)
    labels = pa.array([0, bad], pa.int64())
    pq.write_table(table.set_column(1, table.schema.field("label"), labels), path)
    with pytest.raises(IntegrityBroken, match=r"train-00000-of-00001\.parquet is damaged"):
        list(shards.read_shards(tmp_path))
