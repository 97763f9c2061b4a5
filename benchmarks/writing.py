"""Writing a shard of 1000 images, against plain pyarrow with raw bytes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synth.data.shards import Shard, encode_png, write_shard

from .timing import Case
from .workload import Workload

_IMAGES = 1000


def writing_cases(workload: Workload, folder: Path) -> tuple[list[Case], list[str]]:
    """Return pyarrow with raw bytes, the shipped shard writer, and PNG encoding by itself."""
    images = smooth_images(_IMAGES, workload.network.size, workload.network.channels)
    labels = np.arange(_IMAGES, dtype=np.int64) % 10
    shard = Shard(0, tuple(labels.tolist()))
    names = [str(label) for label in range(10)]

    def raw() -> None:
        table = pa.table({"image": [image.tobytes() for image in images], "label": labels})
        pq.write_table(table, folder / "raw.parquet")

    cases = [
        Case("pyarrow, raw bytes", raw),
        Case(
            "write_shard (PNG, hash, sync)",
            lambda: write_shard(
                folder, shard, 1, [encode_png(image) for image in images], class_names=names
            ),
        ),
        Case("PNG encoding alone", lambda: [encode_png(image) for image in images]),
    ]
    return cases, [
        f"{_IMAGES} images; the raw bytes are neither readable images nor synced to disk."
    ]


def smooth_images(count: int, size: int, channels: int) -> np.ndarray:
    """Return uint8 [count, size, size, channels]: waves with a little noise, to compress as images.

    Pure noise would flatter or punish PNG, which has nothing to find in it.
    """
    generator = np.random.default_rng(0)
    axis = np.linspace(0, np.pi, size)
    phase = generator.uniform(0, 2 * np.pi, (count, 2, 1, 1, channels))
    waves = np.sin(phase[:, 0] + axis[:, None, None]) * np.sin(phase[:, 1] + axis[None, :, None])
    noisy = 127.5 * (1 + waves) + generator.normal(0, 4, waves.shape)
    return noisy.clip(0, 255).astype(np.uint8)
