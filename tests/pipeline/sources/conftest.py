"""A small public set in every format that a source reads."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

CLASSES = ("cat", "dog", "eel")


class Toy:
    """Ten random 6×6 images of three classes, sorted by class, and ways to write them down."""

    classes = CLASSES
    size = 6

    def __init__(self, channels: int = 1):
        rng = np.random.default_rng(channels)
        self.channels = channels
        self.images = rng.integers(0, 256, (10, 6, 6, channels), dtype=np.uint8)
        self.labels = np.sort(rng.integers(0, 3, 10)).astype(np.int64)

    @property
    def spec(self):
        return {"size": self.size, "channels": self.channels, "classes": self.classes}

    def pixels(self, row):
        return self.images[row, :, :, 0] if self.channels == 1 else self.images[row]

    def to_idx(self, folder, zipped=False):
        files = []
        for name, magic, array in (
            ("images", 0x803, self.images[..., 0]),
            ("labels", 0x801, self.labels.astype(np.uint8)),
        ):
            data = struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()
            path = folder / f"{name}.idx"
            path.write_bytes(gzip.compress(data) if zipped else data)
            files.append(path)
        return files

    def to_folder(self, folder):
        for row, label in enumerate(self.labels):
            path = folder / self.classes[label] / f"{row:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.pixels(row)).save(path)
        return folder

    def to_npz(self, folder, **changes):
        arrays = {"images": self.images, "labels": self.labels} | changes
        path = folder / "set.npz"
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path


@pytest.fixture
def toy():
    return Toy()


@pytest.fixture
def rgb_toy():
    return Toy(channels=3)


@pytest.fixture
def same():
    """Assert that a loaded set is the toy set."""

    def check(loaded, toy):
        assert loaded.values.dtype == np.uint8
        assert loaded.labels.dtype == np.int64
        assert np.array_equal(loaded.values, toy.images)
        assert np.array_equal(loaded.labels, toy.labels)

    return check
