import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources import IdxSource
from privacy.errors import DataError


def load(files, toy, **change):
    images, labels = files
    return IdxSource(kind="idx", images=images, labels=labels).load(**(toy.spec | change))


@pytest.mark.parametrize("zipped", [False, True])
def test_plain_and_gzipped_files_are_read(toy, tmp_path, same, zipped):
    same(load(toy.to_idx(tmp_path, zipped), toy), toy)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_files_cut_off_anywhere_are_refused(toy, tmp_path, zipped, which):
    files = toy.to_idx(tmp_path, zipped)
    data = files[which].read_bytes()
    for length in range(0, len(data), 5):
        files[which].write_bytes(data[:length])
        with pytest.raises(DataError, match=files[which].name):
            load(files, toy)


def test_what_a_truncated_file_lacks_is_said(toy, tmp_path):
    files = toy.to_idx(tmp_path)
    files[0].write_bytes(files[0].read_bytes()[:-10])
    with pytest.raises(DataError, match=r"10×6×6, so 360 bytes .*found 350.*truncated"):
        load(files, toy)
    files[0].write_bytes(files[0].read_bytes() + bytes(11))
    with pytest.raises(DataError, match=r"360 bytes .*found more"):
        load(files, toy)


def test_wrong_magic_is_refused(toy, tmp_path):
    images, labels = toy.to_idx(tmp_path)
    with pytest.raises(DataError, match=r"images\.idx.*00000801.*found 00000803"):
        load((images, images), toy)
    with pytest.raises(DataError, match=r"labels\.idx.*00000803.*found 00000801"):
        load((labels, labels), toy)
    images.write_bytes(b"\x89PNG" + bytes(100))
    with pytest.raises(DataError, match="found 89504e47"):
        load((images, labels), toy)


def test_images_and_labels_must_be_as_many(toy, tmp_path):
    images, labels = toy.to_idx(tmp_path)
    labels.write_bytes(struct.pack(">II", 0x801, 9) + bytes(9))
    with pytest.raises(DataError, match=r"10 labels were expected.*found 9"):
        load((images, labels), toy)


def test_damage_inside_a_gzip_file_is_refused(toy, tmp_path):
    files = toy.to_idx(tmp_path, zipped=True)
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 0xFF
    files[0].write_bytes(data)
    with pytest.raises(DataError, match=r"images\.idx"):
        load(files, toy)


def test_a_header_that_claims_terabytes_takes_no_memory(toy, tmp_path):
    files = toy.to_idx(tmp_path)
    files[0].write_bytes(struct.pack(">IIII", 0x803, 2**32 - 1, 6, 6) + bytes(100))
    with pytest.raises(DataError, match="truncated"):
        load(files, toy)
    files[0].write_bytes(struct.pack(">IIII", 0x803, 10, 2**31, 2**31))
    with pytest.raises(DataError, match="6×6 were expected"):
        load(files, toy)


@pytest.mark.parametrize("change", [{"size": 7}, {"channels": 3}, {"classes": ("cat",)}])
def test_a_spec_that_does_not_fit_is_refused(toy, tmp_path, change):
    with pytest.raises(DataError, match="expected"):
        load(toy.to_idx(tmp_path), toy, **change)


def test_missing_files_and_empty_sets_are_refused(toy, tmp_path):
    images, labels = toy.to_idx(tmp_path)
    with pytest.raises(DataError, match="absent: a file was expected, found nothing"):
        load((tmp_path / "absent", labels), toy)
    with pytest.raises(DataError, match="found a folder"):
        load((images, tmp_path), toy)
    images.write_bytes(struct.pack(">IIII", 0x803, 0, 6, 6))
    labels.write_bytes(struct.pack(">II", 0x801, 0))
    with pytest.raises(DataError, match="empty"):
        load((images, labels), toy)


def test_fashion_mnist_is_read():
    root = os.environ.get("UMBRA_TEST_DATA")
    folder = Path(root or Path(__file__).parents[4] / "shared" / "data") / "fashion_mnist"
    files = [folder / f"t10k-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
    if not all(file.is_file() for file in files):
        pytest.skip("Fashion-MNIST is not here: set UMBRA_TEST_DATA to the folder above it")
    source = IdxSource(kind="idx", images=files[0], labels=files[1])
    data = source.load(28, 1, tuple("0123456789"))
    assert np.array_equal(np.bincount(data.labels), np.full(10, 1000))
    with gzip.open(files[0]) as file:
        assert file.read()[16:] == data.values.tobytes()
