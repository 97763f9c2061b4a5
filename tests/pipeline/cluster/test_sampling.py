import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.cluster.sampling import ShardSampler, make_shards
from pipeline.models import ImageSampler, build_denoiser
from privacy.errors import IntegrityBroken
from synth.data.shards import plan_shards, read_shards
from tests.pipeline.cluster import shards_on_nodes


@pytest.fixture
def weights(tmp_path, blots_spec):
    path = tmp_path / "weights.safetensors"
    # Fresh blocks end in zeros, and then precision would change nothing.
    save_file({n: v + 0.02 for n, v in build_denoiser(blots_spec()).state_dict().items()}, path)
    return path


def _plan(spec):
    counts = spec.synthesize.class_counts(len(spec.data.classes))
    return plan_shards(counts, spec.synthesize.shard_rows)


def _bytes(folder):
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


def test_a_shard_depends_on_no_other(tmp_path, blots_spec, weights):
    """Made alone or after others, by one sampler or two: the same bytes."""
    spec = blots_spec()
    shards = _plan(spec)
    one = ShardSampler(spec, weights, tmp_path / "all")
    for shard in shards:
        one.make(shard, len(shards))
    ShardSampler(spec, weights, tmp_path / "last").make(shards[-1], len(shards))
    everything, last = _bytes(tmp_path / "all"), _bytes(tmp_path / "last")
    assert len(everything) == 3 and everything.items() > last.items()
    images = [shard.values.tobytes() for shard in read_shards(tmp_path / "all")]
    assert len(set(images)) == len(images)


def test_progress_moves_within_a_shard(tmp_path, blots_spec, weights):
    """Counted by evaluations of the network, batch after batch, up to the whole shard."""
    spec = blots_spec(("steps: 2", "steps: 5"), ("shard_rows: 5", "shard_rows: 5\n  batch: 2"))
    record: list[float] = []
    labels = torch.zeros(5, dtype=torch.long)
    drawn = ImageSampler(spec, weights).draw(labels, torch.Generator(), record.append)
    assert [len(images) for images in drawn] == [2, 2, 1]
    assert record == pytest.approx(
        [0.4 * k for k in range(1, 11)] + [4 + 0.2 * k for k in range(1, 6)]
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_spec_decides_the_precision(tmp_path, blots_spec, weights, precision):
    """Whoever makes a shard, in the spec's precision: the same bytes, other than the other's."""
    other = {"float32": "bfloat16", "bfloat16": "float32"}[precision]
    made = []
    for number, chosen in enumerate((precision, precision, other)):
        spec = blots_spec(("shard_rows: 5", f"shard_rows: 5\n  precision: {chosen}"))
        ShardSampler(spec, weights, tmp_path / str(number)).make(_plan(spec)[0], 3)
        made.append(_bytes(tmp_path / str(number)))
    assert made[0] == made[1] != made[2]


@pytest.mark.slow
def test_shards_are_the_same_whoever_makes_them(embedded, tmp_path, blots_spec, weights):
    made = {}
    for actors in (1, 2):
        spec = blots_spec(("evaluate:", f"resources: {{sampling_actors: {actors}}}\nevaluate:"))
        shards, entries = _plan(spec), []
        folder = tmp_path / str(actors)
        make_shards(spec, weights, folder, shards, len(shards), entries.append)
        assert sorted(entry.rows for entry in entries) == [2, 5, 5]
        made[actors] = _bytes(folder)
    assert made[1] == made[2]


@pytest.mark.slow
def test_actors_without_room_are_not_waited_for(embedded, tmp_path, blots_spec, weights):
    spec = blots_spec(("evaluate:", "resources: {sampling_actors: 500}\nevaluate:"))
    shards, entries = plan_shards((6, 6), 1), []
    make_shards(spec, weights, tmp_path, shards, len(shards), entries.append)
    assert len(entries) == 12


@pytest.mark.slow
def test_damaged_weights_are_reported_as_such(embedded, tmp_path, blots_spec, weights):
    spec = blots_spec()
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(IntegrityBroken, match=r"weights\.safetensors is missing, damaged or of"):
        make_shards(spec, weights, tmp_path, _plan(spec), 3, print)


@pytest.fixture(scope="module")
def on_nodes(tmp_path_factory):
    """Shards made here and now, and by four actors on two nodes that met with harm."""
    folder, spec = tmp_path_factory.mktemp("nodes"), shards_on_nodes.spec()
    denoiser = build_denoiser(spec)
    save_file(
        {n: v + 0.02 for n, v in denoiser.state_dict().items()}, folder / "weights.safetensors"
    )
    sampler, shards = (
        ShardSampler(spec, folder / "weights.safetensors", folder / "undisturbed"),
        shards_on_nodes.shards(),
    )
    for shard in shards:
        sampler.make(shard, len(shards))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run(
        [sys.executable, shards_on_nodes.__file__, str(folder)],
        env=environment, check=True, capture_output=True, timeout=500,
    )  # fmt: skip
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["killed", "taken"])
def test_actors_that_die_or_stop_change_no_byte(on_nodes, harm):
    """Two of four killed in mid-shard; one stopped, a node with two taken away, another added."""
    record = json.loads((on_nodes / harm / "record.json").read_text())
    assert _bytes(on_nodes / harm) == _bytes(on_nodes / "undisturbed")
    assert len(record["harmed"]) == {"killed": 2, "taken": 1}[harm]
    # They died at work: their notes of it are still there. Others came in their place.
    assert set(record["harmed"]) <= set(record["unfinished"])
    assert len(record["actors"]) > 4
    entries = [file for file, _, _ in record["entries"]]
    assert sorted(entries) == sorted(set(entries)) and len(entries) == 12
    labels = np.concatenate([shard.labels for shard in read_shards(on_nodes / harm)])
    assert Counter(labels.tolist()) == {0: 30, 1: 31, 2: 32}
    assert max(record["images"]) == record["images"][-1] == 93
