import pytest
from safetensors.torch import save_file

from pipeline.building import build_denoiser
from pipeline.cluster.sampling import ShardSampler, make_shards
from privacy.errors import IntegrityBroken
from synth.shards import plan_shards, read_shards


@pytest.fixture
def weights(tmp_path, blots_spec):
    path = tmp_path / "weights.safetensors"
    save_file(build_denoiser(blots_spec()).state_dict(), path)
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
    images = [images.tobytes() for images, _ in read_shards(tmp_path / "all")]
    assert len(set(images)) == len(images)


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
def test_damaged_weights_are_told_as_such(embedded, tmp_path, blots_spec, weights):
    spec = blots_spec()
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(IntegrityBroken, match=r"weights\.safetensors is missing, damaged or of"):
        make_shards(spec, weights, tmp_path, _plan(spec), 3, print)
