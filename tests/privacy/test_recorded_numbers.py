"""Masks, views, noise, clipped sums, keys, rows, specs and shards are as commit 432c19d made them.

`tests/fixtures/recorded_numbers.json` holds what that commit's code gave. It is written by

    PYTHONPATH=. python tests/privacy/test_recorded_numbers.py

which is to be run again only where a number is meant to change, and then says so in its commit.

All is held to the last bit, floats by `float.hex`, except what passes through a logarithm, a cosine
or the normal quantile, whose last bits are the processor's: of noise levels, views and Gaussian
noise the random words are held to the last bit and the values to a relative 1e-6 in float32 and
1e-12 in float64. Bytes of PNG, Parquet and npz are held under the library versions that wrote them,
and their contents under any.
"""

import copy
import hashlib
import io
import json
import re
import sqlite3
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

# --- The adapter: what today's modules call these things; the only part that a move changes. ------
from pipeline.spec import parse_spec
from privacy.budget import Budget, Component, identity
from privacy.clipping import add_to, clip_factors
from privacy.collective import SingleProcess
from privacy.gradients import ENGINES
from privacy.keys import key_id
from privacy.keystream import KeyStream, derive, words_at
from privacy.ledger import Kind as KindOfNow
from privacy.ledger import Ledger, Row
from privacy.ledger.chain import replay, row_hash
from privacy.ledger.rows import canonical, parse
from privacy.mechanisms import MECHANISMS, DiscreteLaplace, Gaussian, SubsampledGaussian
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler
from privacy.records import LabelledRecords
from synth import records as synth_records
from synth.data.shards import Shard, encode_png, shard_generator, write_shard
from synth.methods.base import Attempt
from synth.preconditioning import PRECONDITIONINGS
from synth.records import _words as counter_words
from synth.records import normal, uniform
from tests.builders import part_of, records_of

# Kinds and schemas that came after that commit; they are tested where they belong.
LATER_KINDS, LATER_SCHEMAS = {"order", "facts", "content", "holdout"}, range(3, 100)
Kind = [kind for kind in KindOfNow if kind not in LATER_KINDS]


def of_then(rows):
    """The rows that commit wrote as well, numbered as it numbered them."""
    kept = [
        row
        for row in rows
        if row["kind"] not in LATER_KINDS
        and not (row["kind"] == "migrate" and json.loads(row["body"])["schema"] in LATER_SCHEMAS)
    ]
    return [row | {"seq": number} for number, row in enumerate(kept, 1)]


class Records:
    @staticmethod
    def from_uint8(images, labels, device):
        return records_of(images, labels, device)


class NoisedViews(synth_records.NoisedViews):
    def for_step(self, step, records, record_ids):
        return super().for_step(step, part_of(records, record_ids))


def content_of(images, labels, key):
    return identity.content_of(LabelledRecords(images, labels), key)


def fingerprint(images, labels, key):
    return identity.fingerprint(LabelledRecords(images, labels), key)


def sketch(images, key):
    return identity.sketch(LabelledRecords(images, np.zeros(len(images), np.int64)), key)


def clipped_sums(name, model, loss, records, clip_norm, micro_batch):
    """The engine's sum over the records, a micro-batch at a time."""
    first, *others = zip(*(part.split(micro_batch) for part in records), strict=True)
    sums = ENGINES[name].sum_of_clipped(model, loss, first, clip_norm, micro_batch)
    for part in others:
        add_to(sums, ENGINES[name].sum_of_clipped(model, loss, part, clip_norm, micro_batch))
    return sums


LABEL, SIGMA, NOISE = range(3)  # streams of a record's seed
# --------------------------------------------------------------------------------------------------

TESTS = Path(__file__).parents[1]
RECORDED = TESTS / "fixtures" / "recorded_numbers.json"
SCHEMA_1 = TESTS / "privacy" / "ledger" / "schema_1"
# Those that were there when the numbers were recorded.
EXAMPLES = [TESTS.parent / "examples" / name for name in ("digits.yaml", "mnist.yaml")]

HOME_KEY = bytes(range(32))
KEYS = {"ascending": HOME_KEY, "zero": bytes(32), "ones": b"\xff" * 32}
DOMAINS = (
    "umbra/poisson/1",
    "umbra/views/2",
    "umbra/noise/seeded/1",
    "umbra/attempt-noise/1",
    "umbra/attempt-public/1",
    "umbra/attempt-start/1",
    "umbra/seeded-run/1",
)
STEPS = (0, 1, 255, 256, 9_999, 10_000, 10_001)
ATTEMPTS = (1, 2, 300)


def digest(array):
    """Return SHA-256 over an array's little-endian bytes."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def hexes(numbers):
    return [float(number).hex() for number in np.asarray(numbers).reshape(-1)]


def floats(texts):
    return np.array([float.fromhex(text) for text in texts])


# What is recorded: each function returns plain JSON values.


def masks():
    ids = np.arange(1_000_001, dtype=np.int64)
    found = {}
    for name, key in KEYS.items():
        for attempt in ATTEMPTS:
            for step in STEPS:
                q = (64 / 1438, 0.5, 2.0**-10)[(step + attempt) % 3]
                mask = PoissonSampler(key, attempt, q).mask(step, ids)
                found[f"{name} {attempt} {step}"] = {
                    "q": q.hex(),
                    "bits": hashlib.sha256(np.packbits(mask).tobytes()).hexdigest(),
                    "records": int(mask.sum()),
                    "first": np.flatnonzero(mask)[:5].tolist(),
                    "last": np.flatnonzero(mask)[-2:].tolist(),
                }
    # A worker asks for its own records, in whatever order; q = 1 takes them all.
    some = np.array([1_000_000, 3, 700_001, 12, 0, 1437], dtype=np.int64)
    found["some"] = {
        f"{q} {step}": PoissonSampler(HOME_KEY, 1, q).mask(step, some).tolist()
        for q in (0.5, 1.0)
        for step in STEPS
    }
    return found


def words():
    """Return plain words of every generator: exact on every machine."""
    ids = np.array([0, 1, 2, 1437, 65_536, 999_999, 1_000_000], dtype=np.int64)
    seeds = torch.tensor([0, 1, -1, 2**62, -(2**63)])
    return {
        "by index": {name: words_at(key, ids).tolist() for name, key in KEYS.items()},
        "stream": {name: KeyStream(key).words(6).tolist() for name, key in KEYS.items()},
        "counter": {str(s): counter_words(seeds, s, 3).tolist() for s in (LABEL, SIGMA, NOISE)},
        "uniform": {str(s): hexes(uniform(seeds, s, (2,))) for s in (LABEL, SIGMA, NOISE)},
        "normal": {str(s): hexes(normal(seeds, s, (3,))) for s in (LABEL, SIGMA, NOISE)},
    }


def fixed_images(records, size, channels):
    """Return images [N, H, W, C] of a formula, and labels of three classes."""
    count = records * size * size * channels
    numbers = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761)) >> np.uint64(7)
    images = (numbers % np.uint64(256)).astype(np.uint8).reshape(records, size, size, channels)
    return images, np.arange(records, dtype=np.int64) % 3


def views():
    found = {}
    for channels in (1, 3):
        images, labels = fixed_images(40, 4, channels)
        records = Records.from_uint8(images, labels, torch.device("cpu"))
        for name, config in PRECONDITIONINGS.items():
            drawer = NoisedViews(config(), 3, 0.25, 3, HOME_KEY, attempt=2)
            for step in (0, 10_000):
                ids = np.arange(1, 40, 2, dtype=np.int64)
                gather = drawer.for_step(step, records, ids)
                x, y, sigma, noise = gather(np.array([0, 7, 19, 3]))
                every = gather(np.arange(20))
                found[f"{channels} {name} {step}"] = {
                    "dtypes": [str(part.dtype) for part in (x, y, sigma, noise)],
                    "shapes": [list(part.shape) for part in (x, y, sigma, noise)],
                    "images": digest(x.numpy()),
                    "labels": every[1].tolist(),
                    "sigma": hexes(sigma),
                    "noise": hexes(noise.flatten(2)[:, :, :3]),
                }
    return found


def noise():
    found = {}
    for seed in (0, 7, 2**64 - 1):
        source = SecureGaussian.seeded(seed)
        drawn = [source.standard_normal(5), source.gaussian((2, 2), 3.0).numpy()]
        found[str(seed)] = [hexes(part) for part in drawn]
    long = SecureGaussian.seeded(7).standard_normal(40_000)
    found["long"] = hexes(long[[0, 8191, 8192, 16_383, 16_384, 39_999]])
    return found


class Fresh(SingleProcess):
    """Alone, with a fixed number in place of the one drawn afresh."""

    def __init__(self):
        self.asked = 0

    def broadcast_from_rank0(self, value):
        self.asked += 1
        return value if self.asked == 1 else 123_456_789


def keys():
    run_key = derive(HOME_KEY, "test", 5)
    found = {
        "derived": {
            domain: [derive(HOME_KEY, domain, *context).hex() for context in ((), (1,), (7, 2**63))]
            for domain in DOMAINS
        },
        "key id": {name: key_id(key) for name, key in KEYS.items()},
        "seeds of shards": [
            shard_generator(seed, number).initial_seed() for seed in (0, 9) for number in (0, 1, 77)
        ],
        "attempts": {},
    }
    for name, seed in (("earnest", None), ("seeded", 7)):
        for number in (1, 2):
            begun = Attempt.start(number, run_key, seed, Fresh())
            found["attempts"][f"{name} {number}"] = {
                "key": begun.key.hex(),
                "public seed": begun.generator().initial_seed(),
                # In earnest it is drawn afresh.
                "noise": hexes(begun.noise().standard_normal(3)) if begun.noise().void else [],
            }
    return found


def contents():
    found = {}
    for channels in (1, 3):
        images, labels = fixed_images(300, 5, channels)
        content = content_of(images, labels, HOME_KEY)
        found[str(channels)] = {
            "images": digest(images),
            "fingerprint": fingerprint(images, labels, HOME_KEY),
            "content": [content.fingerprint, content.records, list(content.sketch)],
            "few": list(sketch(images[:4], HOME_KEY)),
        }
    return found


class Counted(nn.Module):
    """A convolution, an embedding and a linear layer, with whole numbers for weights.

    All is symmetric under a reflection of the image and under a change of label, so that records
    that differ in these have gradients of the same norm.
    """

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3, padding=1)
        self.embedding = nn.Embedding(3, 2)
        self.linear = nn.Linear(2 * 4 * 4, 2)
        with torch.no_grad():
            half = torch.tensor([[1, -2], [2, 1], [-1, 2]]).float()
            kernel = torch.cat([half, half[:, :1]], dim=1)
            self.convolution.weight.copy_(torch.stack([kernel, -kernel.flip(0)])[:, None])
            self.convolution.bias.copy_(torch.tensor([1.0, -1.0]))
            self.embedding.weight.copy_(torch.tensor([2.0, 1.0]).expand(3, 2))
            left = torch.arange(2 * 2 * 4 * 2).mul(5).remainder(7).sub(3).float().view(2, 2, 4, 2)
            self.linear.weight.copy_(torch.cat([left, left.flip(-1)], dim=-1).view(2, 32))
            self.linear.bias.copy_(torch.tensor([3.0, -2.0]))

    def forward(self, x, label):
        h = torch.relu(self.convolution(x) + self.embedding(label)[:, :, None, None])
        return self.linear(h.flatten(1))


def counted_loss(model, image, label, scale, views):
    """The mean over two views, times a power of two that stands for nothing but the record's size.

    Every number up to here is a whole one or a half, so float32 holds it exactly.
    """
    out = model(image + views, label.expand(len(views)))
    return (out.square().sum(1) * scale).mean()


def counted_records():
    """Return six records: two that are below the clip norm, three above, one not finite."""

    def numbers(*shape, by, of):
        count = int(np.prod(shape))
        return torch.arange(count).mul(by).remainder(of).sub(of // 2).float().view(*shape)

    plain = numbers(1, 4, 4, by=3, of=5)
    small = numbers(1, 4, 4, by=2, of=3)
    views_of = numbers(2, 1, 4, 4, by=5, of=3)
    images = torch.stack([plain, small, plain.flip(-1), plain, plain, -small])
    views = torch.stack(
        [views_of, views_of, views_of.flip(-1), views_of, views_of, views_of.flip(-2)]
    )
    images[4, 0, 1, 2] = torch.nan
    labels = torch.tensor([0, 1, 1, 2, 0, 2])
    scales = torch.tensor([1.0, 2.0**-10, 2.0, -4.0, 1.0, 2.0**-9])
    return images, labels, scales, views


NAMES = ("record", "layerwise", "two-pass")


def sums():
    """Return sums of clipped gradients, exact on every processor.

    The norms of the three clipped records are one number times a power of two, and C is chosen so
    that their factors, of which C is divided by the norm enlarged by 2**-40, are powers of two:
    then every product and every partial sum is exact in float64, whatever the order of adding and
    whether products are fused.
    """
    model, records = Counted(), counted_records()
    first = tuple(part[:1] for part in records)
    counted_loss(model, *(part[0] for part in records)).backward()
    norm = float(sum(p.grad.double().square().sum() for p in model.parameters())) ** 0.5
    model.zero_grad(set_to_none=True)
    clip_norm = norm * (1 + 2.0**-40) / 2
    found = {"clip norm": clip_norm.hex(), "engines": {}, "alone": {}}
    for name in NAMES:
        for micro_batch in (2, 4):
            total = clipped_sums(name, model, counted_loss, records, clip_norm, micro_batch)
            found["engines"][f"{name} {micro_batch}"] = {
                "sums": {key: hexes(value) for key, value in sorted(total.items())},
            }
        # One record alone, at a clip norm of no meaning: a product is rounded, and nothing added.
        alone = clipped_sums(name, model, counted_loss, first, 0.3, 1)
        found["alone"][name] = {
            key: hexes(value) for key, value in sorted(alone.items()) if value.ndim == 1
        }
    norms = torch.tensor([0.0, 0.1, 1.0, 1.5, 3.0, 1e300, torch.inf, torch.nan]).double()
    found["factors"] = [hexes(clip_factors(norms, C)) for C in (1.0, 0.3, 1e-12)]
    return found


def mechanisms():
    each = {
        "subsampled_gaussian": SubsampledGaussian(64 / 1438, 2.48779, 4500),
        "gaussian": Gaussian(1.3, 1),
        "discrete_laplace": DiscreteLaplace(4.0, 2),
    }
    return {
        name: {
            "text": canonical(mechanism.to_record()),
            "fields": [field.name for field in fields(mechanism)],
        }
        for name, mechanism in each.items()
    }


def fill(folder):
    """Fill a ledger with every kind of row, in the order below, and return its rows.

    It begins as a ledger of schema 1, whose rows are kept as text in `tests/privacy/ledger`.
    """
    path = folder / "ledger.db"
    connection = sqlite3.connect(path)
    for name in ("sqlite.sql", "rows.sql"):
        connection.executescript((SCHEMA_1 / name).read_text(encoding="utf-8"))
    connection.close()
    ledger = Ledger.open(path, HOME_KEY, author="fixture")
    budget = Budget(ledger)
    budget.declare("gray", 10.0, 1e-5)
    budget.declare("colour", 10.0, 1e-5)
    budget.accept_overlap("gray", "colour")
    ledger.start_signing(b"\x01" * 32)
    images, labels = fixed_images(300, 5, 1)
    plan = [
        Component("train", SubsampledGaussian(0.1, 5.0, 20)),
        Component("warmup", Gaussian(30.0, 1)),
        Component("metrics", DiscreteLaplace(40.0, 2)),
    ]
    reserved = budget.reserve(
        "run-1",
        "gray",
        content_of(images, labels, HOME_KEY),
        "one image",
        records_per_unit=2,
        plan=plan,
        void=False,
        idempotency_key="key-1",
        spec_sha256="ab" * 32,
    )
    attempt = budget.begin_attempt(reserved.id, "start-1")
    budget.charge(reserved.id, "warmup", 1, attempt, "charge-1")
    budget.charge(reserved.id, "train", 15, attempt, "charge-2")
    budget.settle(reserved.id)
    budget.record_export(reserved.id, "cd" * 32, "parquet export")
    budget.close("gray")
    rows = [row.__dict__ for row in ledger.rows()]
    ledger.close()
    return [dict(row) for row in rows]


def masked(rows):
    """Return what a row says without what is drawn afresh or follows from it."""
    text = json.dumps(
        [
            {k: v for k, v in row.items() if k not in {"created_at", "prev_hash", "hash"}}
            | {"signature": row["signature"] is not None}
            for row in rows
        ],
        sort_keys=True,
    )
    text = re.sub(r'possession\\":\\"[0-9a-f]{128}', "possession", text)
    for row in rows:
        if row["kind"] == "reserve":
            text = text.replace(row["reservation"], f"RESERVATION {row['seq']}")
    return json.loads(text)


def filled_rows():
    with tempfile.TemporaryDirectory() as folder:
        return fill(Path(folder))


def specs():
    return {
        path.name: parse_spec(path.read_text(encoding="utf-8"), folder=Path("/data")).sha256()
        for path in EXAMPLES
    }


def shards():
    found = {
        "versions": {"pyarrow": pa.__version__, "pillow": PIL.__version__},
        "shards": {},
    }
    for channels in (1, 3):
        images, labels = fixed_images(5, 6, channels)
        shard, names = Shard(1, tuple(labels.tolist())), ("a", "b", "c")
        with tempfile.TemporaryDirectory() as folder:
            entry = write_shard(
                Path(folder), shard, 3, list(map(encode_png, images)), class_names=names
            )
            data = (Path(folder) / entry.file).read_bytes()
            # With PNGs of no meaning: the bytes are pyarrow's alone.
            given = write_shard(
                Path(folder), shard, 3, [bytes([i]) * 9 for i in range(5)], class_names=names
            )
        table = pq.read_table(io.BytesIO(data))
        rows = table["image"].to_pylist()
        pixels = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in rows]
        found["shards"][str(channels)] = {
            "entry": [entry.file, entry.bytes, entry.sha256, entry.rows],
            "of given bytes": [given.bytes, given.sha256],
            "pngs": [hashlib.sha256(row["bytes"]).hexdigest() for row in rows],
            "written by": pq.ParquetFile(io.BytesIO(data)).metadata.created_by,
            "contents": {
                "pixels": digest(np.stack(pixels)),
                "paths": [row["path"] for row in rows],
                "labels": table["label"].to_pylist(),
                "features": table.schema.metadata[b"huggingface"].decode(),
                "types": [str(field.type) for field in table.schema],
            },
        }
    return found


PARTS = {
    part.__name__: part
    for part in (masks, words, views, noise, keys, contents, sums, mechanisms, specs, shards)
}


def record():
    """Write down what the code of today gives; see the head of this file."""
    found = {name: part() for name, part in PARTS.items()} | {"rows": filled_rows()}
    RECORDED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def take(tree, *names):
    """Take values out of every dictionary of a dictionary; return what was taken, by name."""
    return {name: {key: branch.pop(name) for key, branch in tree.items()} for name in names}


def assert_near(found, expected, rel):
    """Hold every list of floats to a relative tolerance, by its largest."""
    assert found.keys() == expected.keys()
    for name, texts in found.items():
        one, other = floats(texts), floats(expected[name])
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=rel, atol=rel, err_msg=name)


@pytest.mark.parametrize("part", ["masks", "contents", "sums", "mechanisms", "specs"])
def test_is_the_same_to_the_last_bit(recorded, part):
    assert PARTS[part]() == recorded[part]


def test_words_are_the_same_to_the_last_bit(recorded):
    found, expected = words(), copy.deepcopy(recorded["words"])
    assert_near(found.pop("normal"), expected.pop("normal"), 1e-6)
    assert found == expected


def test_views_have_the_same_labels_noise_levels_and_noise(recorded):
    found, expected = views(), copy.deepcopy(recorded["views"])
    one, other = take(found, "sigma", "noise"), take(expected, "sigma", "noise")
    for name in one:
        assert_near(one[name], other[name], 1e-6)
    assert found == expected


def test_seeded_noise_is_the_same(recorded):
    found, expected = noise(), recorded["noise"]
    assert found.keys() == expected.keys()
    for name in found:
        assert_near({"": np.ravel(sum_lists(found[name]))}, {"": sum_lists(expected[name])}, 1e-12)


def sum_lists(lists):
    return [text for part in lists for text in ([part] if isinstance(part, str) else part)]


def test_keys_are_the_same_to_the_last_bit(recorded):
    found, expected = keys(), copy.deepcopy(recorded["keys"])
    one, other = (take(tree["attempts"], "noise")["noise"] for tree in (found, expected))
    assert_near(one, other, 1e-12)
    assert found == expected


def test_the_engines_and_micro_batches_give_one_sum(recorded):
    """And it is the one that can be written down by hand, from the gradients of single records."""
    totals = [total["sums"] for total in recorded["sums"]["engines"].values()]
    assert len(totals) == 6
    assert all(total == totals[0] for total in totals)
    model, records = Counted(), counted_records()
    by_hand = {name: torch.zeros_like(p).double() for name, p in model.named_parameters()}
    norms = []
    for i, factor in enumerate([0.5, 1.0, 0.25, 0.125, 0.0, 1.0]):
        model.zero_grad()
        counted_loss(model, *(part[i] for part in records)).backward()
        gradients = {name: p.grad.double() for name, p in model.named_parameters()}
        norms.append(sum(float(g.square().sum()) for g in gradients.values()) ** 0.5)
        for name, gradient in gradients.items():
            by_hand[name] += gradient.nan_to_num(0.0) * factor if factor else 0.0
    clip_norm = float.fromhex(recorded["sums"]["clip norm"])
    assert [norm > clip_norm for norm in norms] == [True, False, True, True, False, False]
    assert not np.isfinite(norms[4])
    assert {name: hexes(total) for name, total in by_hand.items()} == totals[0]


class TestRows:
    """Rows that were written stay readable and mean what they meant."""

    def test_every_kind_and_every_mechanism_is_there(self, recorded):
        assert {row["kind"] for row in recorded["rows"]} == {str(kind) for kind in Kind}
        assert set(recorded["mechanisms"]) == set(MECHANISMS)
        text = json.dumps(recorded["rows"])
        assert all(f'\\"type\\":\\"{name}\\"' in text for name in MECHANISMS)

    def test_recorded_rows_keep_their_text_their_hash_and_their_signature(self, recorded):
        rows = [Row(**row) for row in recorded["rows"]]
        for row in rows:
            assert canonical(parse(row.body)) == row.body
            assert row_hash(row) == row.hash
        (signer,) = [row for row in rows if row.kind == "signer"]
        assert list(replay(rows, [rows[-1].head], signer.content["public_key"])) == []

    def test_the_same_requests_write_the_same_rows(self, recorded, tmp_path):
        assert masked(of_then(fill(tmp_path))) == masked(recorded["rows"])


def test_shards_have_the_same_contents_and_bytes(recorded):
    found, expected = shards(), recorded["shards"]
    for channels, one in found["shards"].items():
        other = expected["shards"][channels]
        assert one["contents"] == other["contents"]
        assert one["entry"][::3] == other["entry"][::3]
    same = {name: found["versions"][name] == v for name, v in expected["versions"].items()}
    for channels, one in found["shards"].items():
        other = expected["shards"][channels]
        if same["pyarrow"]:
            assert one["of given bytes"] == other["of given bytes"]
        if same["pillow"]:
            assert one["pngs"] == other["pngs"]
        if all(same.values()):
            assert one == other


if __name__ == "__main__":
    record()
