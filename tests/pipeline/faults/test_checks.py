"""The checks after a fault find what they are meant to find."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.home import Home
from privacy.budget import Budget, Component
from privacy.budget.identity import Content
from privacy.ledger import Ledger
from privacy.mechanisms import Gaussian
from synth.data.manifest import Manifest, load_manifest
from synth.data.shards import encode_png, plan_shards, write_shard
from tests.pipeline.faults.checks import ledger_problems, message_problems, release_problems
from tests.pipeline.faults.small_runs import SHARD_ROWS, SHARDS

CLASSES = tuple(map(str, range(10)))


@pytest.fixture
def release(tmp_path):
    """A release as a small run leaves it."""
    counts = (SHARDS * SHARD_ROWS // 10,) * 10
    shards = plan_shards(counts, SHARD_ROWS)
    images = np.random.default_rng(1).integers(
        0, 256, (SHARDS, SHARD_ROWS, 8, 8, 1), dtype=np.uint8
    )
    entries = [
        write_shard(tmp_path, shard, SHARDS, list(map(encode_png, images[i])), class_names=CLASSES)
        for i, shard in enumerate(shards)
    ]
    Manifest((8, 8, 1), CLASSES, counts, tuple(entries)).write(tmp_path)
    return tmp_path


def test_a_whole_release_is_fine(release):
    assert release_problems(release) == []


def _lose(data):
    (data / "train-00003-of-00020.parquet").unlink()


def _repeat(data):
    first = (data / "train-00000-of-00020.parquet").read_bytes()
    (data / "train-00001-of-00020.parquet").write_bytes(first)


def _cut(data):
    path = data / "train-00002-of-00020.parquet"
    path.write_bytes(path.read_bytes()[:-1])


def _leave(data):
    (data / "train-00002-of-00020.parquet.part").write_bytes(b"half")


@pytest.mark.parametrize("harm", [_lose, _repeat, _cut, _leave])
def test_shards_lost_repeated_and_half_written_are_found(release, harm):
    harm(release / "data")
    assert release_problems(release)


@pytest.mark.parametrize(("of", "words"), [(1, "repeated"), (19, "each class")])
def test_a_shard_made_twice_in_place_of_another_is_found(release, of, words):
    """Though the manifest is sound; the last shard is of another class than the first."""
    manifest = load_manifest(release)
    shards = list(manifest.shards)
    first, other = release / shards[0].file, release / shards[of].file
    other.write_bytes(first.read_bytes())
    shards[of] = replace(shards[of], bytes=shards[0].bytes, sha256=shards[0].sha256)
    replace(manifest, shards=tuple(shards)).write(release)
    assert any(words in text for text in release_problems(release))


@pytest.mark.parametrize(
    ("stderr", "problems"),
    [
        ("run small\numbra: the ledger cannot be reached\n", 0),
        ("", 1),
        ("Fatal: core dumped\n", 1),
        ("Traceback (most recent call last)\nKeyError\n", 2),
        ("Traceback (most recent call last)\numbra: it failed\n", 1),
    ],
)
def test_messages_that_are_no_sentence_are_found(stderr, problems):
    assert len(message_problems(stderr)) == problems


@pytest.fixture
def charged(tmp_path):
    """A site, and a reservation with 4 steps charged to attempt 1 and 6 to attempt 2."""
    home = Home.locate({"UMBRA_HOME": str(tmp_path)})
    budget = Budget(Ledger.open(home.ledger_url, bytes(32)))
    budget.declare("digits", 5.0, 1e-5)
    reserved = budget.reserve(
        "run", "digits", Content("print", 9, ("0" * 16,)), "one image", records_per_unit=1,
        plan=[Component("dp-sgd", Gaussian(60.0, 200))], void=False, idempotency_key="key",
    )  # fmt: skip
    for attempt, steps in ((1, 4), (2, 6)):
        assert budget.begin_attempt(reserved.id, f"start-{attempt}") == attempt
        budget.charge(reserved.id, "dp-sgd", steps, attempt, f"charge-{attempt}")
    return SimpleNamespace(home=home), reserved.id, budget


@pytest.mark.parametrize(
    ("executed", "wrong"), [({1: 4, 2: 6}, 0), ({1: 3}, 0), ({1: 5}, 1), ({1: 4, 3: 1}, 1)]
)
def test_steps_that_were_not_charged_are_found(charged, executed, wrong):
    site, reservation, _ = charged
    assert len(ledger_problems(site, reservation, Counter(executed))) == wrong


def test_more_steps_than_were_reserved_are_found(charged):
    site, reservation, budget = charged
    budget.charge(reservation, "dp-sgd", 51, 2, "too much")
    (wrong,) = ledger_problems(site, reservation, Counter())
    assert wrong == "61 steps were charged of 60"
