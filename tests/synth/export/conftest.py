"""A small release, the facts of its card and its privacy statement."""

import numpy as np
import pytest

from synth.data.manifest import Manifest
from synth.data.shards import encode_png, plan_shards, write_shard
from synth.export.documents import CardFacts

NAMES = ("zero", "T-shirt/top", "apple")
COUNTS = (5, 3, 4)


@pytest.fixture
def make_release(tmp_path):
    def make(channels=1, names=NAMES, counts=COUNTS):
        folder = tmp_path / "release"
        rng = np.random.default_rng(0)
        plan = plan_shards(counts, 5)
        entries = []
        for shard in plan:
            images = rng.integers(0, 256, (len(shard.labels), 8, 8, channels), dtype=np.uint8)
            pngs = [encode_png(image) for image in images]
            entries.append(write_shard(folder, shard, len(plan), pngs, class_names=names))
        Manifest((8, 8, channels), names, counts, tuple(entries)).write(folder)
        return folder

    return make


@pytest.fixture
def release(make_release):
    return make_release()


@pytest.fixture
def card():
    return CardFacts(
        name="Digits: a twin",
        license="cc-by-4.0",
        description="Small pictures.",
        source="digits of the house",
        method="DP-SGD on an EDM denoiser, Churn sampler, 50 steps.",
        version="0.1.0",
        measures=(("Accuracy | public test set", "0.91"),),
    )


@pytest.fixture
def privacy():
    return {
        "unit": "one image",
        "neighbouring_relation": "add/remove with zero-out",
        "delta": 1e-5,
        "epsilon": {"rdp": 9.9959, "prv": 9.2917, "pld": 9.2916},
        "mechanisms": [
            {
                "type": "subsampled_gaussian",
                "sampling_probability": 1 / 15,
                "noise_multiplier": 2.48779,
                "steps": 4500,
            }
        ],
        "ledger_id": "ledger-1",
        "head_hash": "ab" * 32,
        "reservation": "reservation-7",
        "void": False,
    }
