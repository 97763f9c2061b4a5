import pytest
from safetensors.torch import save

from pipeline import stages
from pipeline.cluster.sampling import ShardSampler
from pipeline.models import build_denoiser
from pipeline.runs.origin import WEIGHTS, origin_of
from synth.data.manifest import MANIFEST, load_manifest, verify
from synth.origin import seal_tensors
from synth.storage import write_bytes


@pytest.fixture
def run(house, blots_spec):
    run = house.reserve(blots_spec())
    _write_weights(house, run, build_denoiser(run.spec()).state_dict())
    return run


def _write_weights(house, run, weights):
    reservation = house.budget.reservation(run.state().reservation_id)
    write_bytes(run.release / WEIGHTS, seal_tensors(save(weights), origin_of(run, reservation)))


@pytest.fixture
def made(monkeypatch):
    """Numbers of the shards that were made, by the real sampler, here and now."""
    numbers = []

    def make_shards(spec, weights, folder, shards, of, on_shard, on_images):
        sampler = ShardSampler(spec, weights, folder)
        for shard in shards:
            numbers.append(shard.number)
            on_shard(sampler.make(shard, of))

    monkeypatch.setattr(stages.sampling, "make_shards", make_shards)
    return numbers


@pytest.fixture
def synthesize(run, context, tracked):
    def call():
        given = context(run)
        stages.Synthesize().run(given, tracked)
        return given

    return call


def _files(run):
    return {path.name: path.read_bytes() for path in (run.release / "data").iterdir()}


def test_all_shards_are_made_and_listed(run, synthesize, made, tracked):
    given = synthesize()
    assert made == [0, 1, 2] and verify(run.release) == []
    manifest = load_manifest(run.release)
    assert (manifest.class_counts, [s.rows for s in manifest.shards]) == ((6, 6), [5, 5, 2])
    assert tracked.values == {"rows": 12} and given.progress.done == {"synthesize": 12}


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_only_what_is_not_sound_is_made_again_and_is_as_it_was(run, synthesize, made, harm):
    synthesize()
    before, manifest = _files(run), (run.release / MANIFEST).read_bytes()
    victim = run.release / load_manifest(run.release).shards[1].file
    if harm == "gone":
        victim.unlink()
    else:
        victim.write_bytes(before[victim.name][:-1])
    given = synthesize()
    assert made == [0, 1, 2, 1]
    assert _files(run) == before and (run.release / MANIFEST).read_bytes() == manifest
    assert given.progress.done == {"synthesize": 12}


def test_shards_of_other_weights_are_not_kept(house, run, synthesize, made):
    synthesize()
    weights = build_denoiser(run.spec()).state_dict()
    _write_weights(house, run, {name: value + 0.1 for name, value in weights.items()})
    synthesize()
    assert made == [0, 1, 2] * 2
    assert verify(run.release) == []
