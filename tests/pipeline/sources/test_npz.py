import io
import struct
import zipfile

import numpy as np
import pytest

from pipeline.sources import NpzSource
from privacy.errors import DataError


def load(path, toy, **change):
    return NpzSource(kind="npz", path=path).load(**(toy.spec | change))


def test_bytes_are_read_with_and_without_a_channel_axis(toy, rgb_toy, tmp_path, same):
    same(load(toy.to_npz(tmp_path), toy), toy)
    same(load(toy.to_npz(tmp_path, images=toy.images[..., 0]), toy), toy)
    same(load(rgb_toy.to_npz(tmp_path), rgb_toy), rgb_toy)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_between_0_and_1_become_bytes(toy, tmp_path, kind, same):
    same(load(toy.to_npz(tmp_path, images=(toy.images / 255).astype(kind)), toy), toy)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64])
def test_labels_of_any_integer_type_are_read(toy, tmp_path, kind, same):
    same(load(toy.to_npz(tmp_path, labels=toy.labels.astype(kind)), toy), toy)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (np.nan, "found NaN or infinity"),
        (np.inf, "found NaN or infinity"),
        (1.25, "between 0 and 1"),
        (-0.25, "between 0 and 1"),
    ],
)
def test_floats_that_are_no_pixels_are_refused(toy, tmp_path, bad, text):
    images = toy.images / 255
    images[3, 2, 1, 0] = bad
    with pytest.raises(DataError, match=rf"set\.npz.*{text}") as caught:
        load(toy.to_npz(tmp_path, images=images), toy)
    assert "0.25" not in str(caught.value)
    assert "1.25" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"images": None}, "'images' was expected, found labels"),
        ({"labels": None}, "'labels' was expected, found images"),
        ({"images": np.zeros((10, 6, 6), np.int32)}, "uint8 or float were expected, found int32"),
        ({"images": np.zeros((10, 6, 6), bool)}, "found bool"),
        ({"images": np.zeros((10, 36), np.uint8)}, "6×6×1 .* found 36"),
        ({"images": np.zeros((10, 1, 6, 6), np.uint8)}, "6×6×1 .* found 1×6×6"),
        ({"images": np.zeros((9, 6, 6), np.uint8)}, "one a record"),
        ({"labels": np.zeros(10)}, "integer type were expected, found float64"),
        ({"labels": np.full(10, 3)}, "found labels outside"),
        ({"labels": np.full(10, -1)}, "found labels outside"),
        ({"labels": np.zeros((10, 1), np.int64)}, "one a record"),
        ({"labels": np.array([None] * 10)}, "without pickled objects"),
        ({"images": np.zeros((0, 6, 6), np.uint8), "labels": np.zeros(0, np.int64)}, "empty"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(toy, tmp_path, change, text):
    with pytest.raises(DataError, match=rf"set\.npz.*{text}"):
        load(toy.to_npz(tmp_path, **change), toy)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x93NUMPY", b"text"])
def test_what_is_no_archive_is_refused(toy, tmp_path, content):
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.npz: a NumPy archive"):
        load(path, toy)


def test_a_single_array_is_no_archive(toy, tmp_path):
    path = tmp_path / "set.npy"
    np.save(path, toy.images)
    with pytest.raises(DataError, match="a NumPy archive"):
        load(path, toy)


def test_cut_off_changed_and_missing_archives_are_refused(toy, tmp_path):
    path = toy.to_npz(tmp_path)
    data = path.read_bytes()
    for length in range(0, len(data), 31):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"set\.npz"):
            load(path, toy)
    damaged = bytearray(data)
    damaged[300] ^= 1  # a pixel: the archive's checksum fails
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        load(path, toy)
    with pytest.raises(DataError, match="found nothing"):
        load(tmp_path / "absent.npz", toy)


def archive(header):
    """Return an .npz whose images have this text as their header."""
    text = header.encode().ljust(117) + b"\n"
    images = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    labels = io.BytesIO()
    np.save(labels, np.zeros(1, np.int64))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("images.npy", images)
        made.writestr("labels.npy", labels.getvalue())
    return buffer.getvalue()


def patched(data, local, central, value):
    """Set a byte of every member's local header and of its entry in the directory."""
    data = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset] = value
            at = data.find(signature, at + 1)
    return bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: patched(data, 6, 8, 1),  # encrypted
        lambda data: patched(data, 8, 10, 93),  # compressed by Zstandard
        lambda data: archive("{'descr':'|u1','fortran_order':False,'shape':(4,6,6"),
        lambda data: archive("{'descr':'|u1','fortran_order':False,'shape':(99999999999999,6,6),}"),
        lambda data: archive("{'descr':'|u1','fortran_order':False,'shape':(-1,6,6),}"),
        lambda data: archive("{'descr':'|S1','fortran_order':0}"),
        lambda data: archive("{'descr':'|u1','fortran_order':False,'shape':(4L,1if 1else 0),}"),
        lambda data: archive("{'descr':'\\d','fortran_order':False,'shape':(4,6,6),}"),
    ],
)
def test_what_another_tool_zipped_is_a_clear_error(toy, tmp_path, change, recwarn):
    path = toy.to_npz(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"set\.npz: a NumPy archive .* was expected"):
        load(path, toy)
    assert list(recwarn) == []
