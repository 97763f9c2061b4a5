"""Memory of a training worker that keeps its share of a large set: `python -m benchmarks.loading`.

A worker in a process of its own reads a set that a generator makes, as training does: it verifies
the fingerprint of all records, keeps those that it owns, releases class sums of them and takes
private steps. Its peak is compared with that of a worker whose set is nearly empty.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.cluster.actor_group import tune_malloc
from pipeline.runs.dataset_identity import DatasetIdentity
from pipeline.sources.base import rows_at_a_time
from privacy.budget.identity import Fingerprint
from privacy.dp_sgd import DPSGD
from privacy.records import LabelledRecords, own
from synth.methods.base import Attempt
from synth.preconditioning import EDM, Denoiser
from synth.records import Records
from synth.settings import TrainSettings, WarmupSettings
from synth.training import Trainer, Training
from synth.unet import UNet, UNetConfig

from .processes import last_line, peak_bytes, start

SIZE, CHANNELS, CLASSES = 32, 3, 10
IMAGES, WORKERS, LIMIT_GIB = 600_000, 2, 1.6
_FEW = 64  # images of the set that is nearly empty, which is one batch
_STEPS = 2
_GIB = 2**30


def made(images: int) -> Iterator[LabelledRecords]:
    """Yield a set of noise, the same at every call, a part at a time."""
    rows = rows_at_a_time(SIZE, CHANNELS)
    for begun in range(0, images, rows):
        count = min(rows, images - begun)
        generator = np.random.default_rng(begun)
        values = generator.integers(0, 256, (count, SIZE, SIZE, CHANNELS), dtype=np.uint8)
        yield LabelledRecords(values, generator.integers(0, CLASSES, count))


class _First:
    """Rank 0 of a group whose other workers are not there."""

    rank = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def sum(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return tensors

    def broadcast_from_rank0(self, value: int) -> int:
        return value


class _Meter:
    """Grants a warm-up and some steps."""

    def __init__(self) -> None:
        self._left = {"warmup": 1, "dp-sgd": _STEPS}

    def remaining(self, component: str) -> int:
        return self._left[component]

    def charge(self, component: str, steps: int) -> str:
        self._left[component] -= steps
        return ""


def train(images: int, workers: int) -> tuple[int, int]:
    """Load and train as one of `workers`; return its records and the peak of its memory, bytes."""
    torch.set_num_threads(1)
    tune_malloc()
    key = bytes(32)
    content = Fingerprint(key)
    for part in made(images):
        content.add(part)
    identity = DatasetIdentity("bench", key, str(content))
    attempt, collective = Attempt(1, key), _First(workers)
    owned = own(identity.verified(made(images)), attempt.key, 0, workers, images)
    records = Records.of(owned, torch.device("cpu"))
    shape = {"base": 8, "multipliers": (1, 2), "blocks": 1, "attention": ()}
    network = UNet(UNetConfig(size=SIZE, channels=CHANNELS, **shape))
    warmup = WarmupSettings(
        noise_multiplier=1.0, clip_norm=1.0, steps=1, batch=16, learning_rate=1e-3
    )
    settings = TrainSettings(batch=_FEW, steps=_STEPS, views=2, warmup=warmup)
    training = Training(DPSGD(images, _FEW / images, 1.0, 1.0), _STEPS, CLASSES, 0.1, 8, settings)
    with tempfile.TemporaryDirectory() as folder:
        denoiser = Denoiser(network, EDM())
        Trainer(training, denoiser, records, attempt, _Meter(), Path(folder), collective).run()
    return len(records), peak_bytes()


def above_an_empty_worker(images: int, workers: int) -> tuple[int, float]:
    """Return how many records one of `workers` keeps, and the GiB that it takes for them."""
    peaks = []
    for count in (images, _FEW):
        kept, peak = last_line(start("benchmarks.loading", "--worker", count, workers)).split()
        peaks.append((int(kept), int(peak)))
    (kept_of_all, most), (_, least) = peaks
    return kept_of_all, (most - least) / _GIB


def main() -> None:
    """Print how much memory a worker takes, and fail where that is more than it may."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--worker", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(*train(*arguments.worker))
        return
    images, workers = arguments.images, arguments.workers
    kept, gib = above_an_empty_worker(images, workers)
    print(f"{images:,} images of {SIZE}x{SIZE}x{CHANNELS}, {workers} workers: one keeps {kept:,}")
    print(f"{gib:.2f} GiB above an empty worker; the images that it keeps are")
    print(f"{kept * SIZE**2 * CHANNELS / _GIB:.2f} GiB, and all of them in float32 would be")
    print(f"{images * SIZE**2 * CHANNELS * 4 / _GIB:.2f} GiB")
    if (images, workers) == (IMAGES, WORKERS) and gib > LIMIT_GIB:
        sys.exit(f"at most {LIMIT_GIB} GiB were expected")


if __name__ == "__main__":
    main()
