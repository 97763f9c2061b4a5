"""A whole run on marked private images: nothing of them is in anything that leaves.

Every record carries a marker in its pixels and in its file's name, and the figures that were
computed from private records without paying are read from `internal/` where they belong. Then
every byte that left is searched for all of them, in every form that we could think of: the release,
the export, MLflow's database and artifacts, what the commands printed, the run's log and state, and
what Ray's processes wrote while they lived.
"""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.sources import FolderSource
from privacy.keys import load_or_create_key
from synth.data.shards import read_shards

pytestmark = pytest.mark.slow

CLASSES = ("round", "square")
COUNTS = {"train": (67, 44), "holdout": (53, 44)}  # 97 is prime: accuracies have long decimals
NAME = "patient-kleinschmidt-"
SPEC = {
    "name": "marked",
    "data": {
        "name": "marked",
        "source": {"kind": "folder", "path": "train"},
        "records": sum(COUNTS["train"]),
        "size": 8,
        "channels": 1,
        "classes": list(CLASSES),
        "holdout": {"source": {"kind": "folder", "path": "holdout"}},
    },
    "privacy": {"epsilon": 8.0, "delta": 1e-3},
    "model": {"base": 4, "multipliers": [1], "blocks": 1, "attention": []},
    "train": {
        "batch": 37,
        "steps": 12,
        "views": 2,
        "charge_block": 4,
        "checkpoint_every": 4,
        "warmup": {"noise_multiplier": 3.0, "clip_norm": 3.0, "steps": 5, "batch": 8,
                   "learning_rate": 1e-3},
    },
    "synthesize": {"images": 24, "steps": 3, "shard_rows": 7},
    # Little ε, so that the noisy counts are hardly ever the true ones.
    "evaluate": {"classifiers": ["logreg", "mlp"], "epochs": 2, "release": "dp",
                 "release_epsilon": 0.003, "release_class_counts": True},
}  # fmt: skip


def _images(rng, count):
    """Images whose every row is random: eight bytes in a row are nobody else's."""
    return rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)


def _write(folder, split):
    rng = np.random.default_rng(sum(COUNTS[split]))
    for name, count in zip(CLASSES, COUNTS[split], strict=True):
        (folder / split / name).mkdir(parents=True)
        for number, image in enumerate(_images(rng, count)):
            Image.fromarray(image).save(folder / split / name / f"{NAME}{split}-{number}.png")


class Logs(threading.Thread):
    """Keeps what Ray's processes write, for the folder is removed when they end."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.texts, self._folder, self._ended = {}, folder, threading.Event()

    def run(self):
        while not self._ended.wait(0.3):
            for path in self._folder.rglob("*"):
                if path.suffix in {".log", ".out", ".err", ".txt", ".json"}:
                    try:
                        self.texts[path.name] = path.read_bytes()
                    except OSError:
                        continue

    def end(self):
        self._ended.set()
        self.join()
        return b"\n".join(self.texts.values())


@pytest.fixture(scope="module")
def lived(made_once):
    """The folder of the private data, and everything that left, by where it was found."""
    return made_once("marked", _live)


def _live(folder):
    for split in COUNTS:
        _write(folder, split)
    (folder / "marked.yaml").write_text(yaml.safe_dump(SPEC))
    temporary = Path(tempfile.mkdtemp(prefix="u-"))  # short: sockets with long names are refused
    home = folder / "home"
    dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "UMBRA_LEDGER_URL", "UMBRA_TRACEBACK")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    env = {**kept, "UMBRA_HOME": str(home), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    logs = Logs(temporary)
    logs.start()
    left = {}
    for arguments in (
        ["budget", "declare", "marked", "--epsilon", "9", "--delta", "1e-3"],
        ["plan", "marked.yaml", "--json"],
        ["submit", "marked.yaml"],
        ["status", "marked"],
        ["export", "marked", "export-parquet"],
        ["export", "marked", "export-images", "--format", "images"],
        ["budget", "show"],
        ["budget", "history", "marked", "--json"],
        ["audit", "export-parquet", "--json"],
        ["audit", "release", "marked"],
        ["report", "marked"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli.main", *arguments],
            cwd=folder, env=env, capture_output=True, timeout=400, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (arguments, done.stderr.decode())
        left[f"umbra {arguments[0]} {arguments[1]}"] = done.stdout + done.stderr
    left["Ray's logs"] = logs.end()
    shutil.rmtree(temporary, ignore_errors=True)
    assert len(left["Ray's logs"]) > 1000
    (run,) = (home / "runs").iterdir()
    outside = [run / "release", home / "mlflow.db", home / "mlartifacts"]
    outside += [folder / "export-parquet", folder / "export-images"]
    outside += [path for path in run.iterdir() if path.is_file()]
    for top in outside:
        for path in (top,) if top.is_file() else top.rglob("*"):
            if path.is_file():
                left[str(path.relative_to(folder))] = path.read_bytes()
    for name, content in list(left.items()):
        left |= {f"{name}, image {i}": pixels for i, pixels in enumerate(_pictures(content))}
    for shard in read_shards(run / "release"):
        left[f"shard {len(left)}"] = shard.values.tobytes()
    return folder, run, left


def _pictures(content):
    """The pixels of the images that a page holds as data, or that a file is."""
    coded = [base64.b64decode(found) for found in re.findall(rb"base64,([A-Za-z0-9+/=]+)", content)]
    for data in [content] if content.startswith(b"\x89PNG") else coded:
        with Image.open(io.BytesIO(data)) as image:
            yield np.asarray(image).tobytes()


def _forms(row):
    """Eight pixels in a row, in every form that they may take on their way out."""
    scaled = row / np.float64(127.5) - 1
    arrays = [row, row.astype("<i8")]
    for unit in (row / np.float64(255), scaled):
        arrays += [unit.astype("<f4"), unit.astype("<f8")]
    forms = {array.tobytes() for array in arrays}
    raw = row.tobytes()
    forms |= {raw.hex().encode(), raw.hex().upper().encode()}
    for skipped in range(3):
        # Base64 depends on where in its group of three a byte falls.
        whole = raw[skipped : skipped + 3 * ((len(raw) - skipped) // 3)]
        forms.add(base64.b64encode(whole).rstrip(b"="))
    for separator in (", ", ",", " ", "  "):
        forms.add(separator.join(map(str, row.tolist())).encode())
    return {form for form in forms if len(form) >= 8}


def _records(folder):
    for split in COUNTS:
        loaded = FolderSource(kind="folder", path=folder / split).load(8, 1, CLASSES)
        yield split, loaded


def needles(folder, run):
    """What may not be found, by its name: bytes each of which betrays a private record."""
    wanted = {"a file's name": {NAME.encode()}, "pixels": set(), "a digest": set()}
    wanted["a mean"] = set()
    for _, loaded in _records(folder):
        for image in loaded.values[..., 0]:
            for row in image:
                wanted["pixels"] |= _forms(row)
            for digest in (hashlib.sha256, hashlib.md5, hashlib.sha1):
                wanted["a digest"].add(digest(image.tobytes()).hexdigest()[:16].encode())
        for digest in (hashlib.sha256, hashlib.md5, hashlib.sha1):
            wanted["a digest"].add(digest(loaded.values.tobytes()).hexdigest()[:16].encode())
        whole = loaded.values.astype(np.float64)
        for part in (whole, *(whole[loaded.labels == label] for label in (0, 1))):
            for value in (part.mean(), part.std(), part.mean() / 255, part.mean() / 127.5 - 1):
                wanted["a mean"].add(f"{value:.6f}"[:8].encode())
    for path in folder.glob("*/*/*.png"):
        wanted["a digest"].add(hashlib.sha256(path.read_bytes()).hexdigest()[:16].encode())
    for split, counts in COUNTS.items():
        # In brackets or quotes: two bare numbers side by side may stand in any log.
        for text in ("[{}, {}]", "[{},{}]", "({}, {})", "[{} {}]", '"{}", "{}"'):
            wanted.setdefault(f"class counts of {split}", set()).add(text.format(*counts).encode())
    wanted["a metric"] = {number.encode() for number in _metrics(run)}
    wanted["a key"] = _keys(run)
    return wanted


def _metrics(run):
    """The unpaid figures, as they would be printed; the holdout's size makes them long."""
    numbers = []

    def walk(value):
        if isinstance(value, float) and value not in (0.0, 1.0):
            numbers.append(value)
        inside = value.values() if isinstance(value, dict) else value
        for inner in inside if isinstance(value, dict | list) else ():
            walk(inner)

    walk(json.loads((run / "internal" / "metrics.json").read_text()))
    texts = {repr(number)[:9] for number in numbers}
    return {text for text in texts if len(text) == 9}


def _keys(run):
    found = set()
    for path in (run.parents[1] / "key", run / "internal" / "run.key"):
        key = load_or_create_key(path)
        found |= {key, key.hex().encode(), base64.b64encode(key).rstrip(b"=")}
    return found


def search(left, wanted):
    """Where which needle was found: (place, what) pairs."""
    kinds = {form: what for what, forms in wanted.items() for form in forms}
    heads = {}
    for form in kinds:
        heads.setdefault(form[:8], []).append(form)
    short = [form for form in kinds if len(form) < 8]
    keys = np.sort(np.array([np.frombuffer(h, "<u8")[0] for h in heads if len(h) == 8]))
    found = set()
    for place, content in left.items():
        candidates = {form for form in short if form in content}
        for at in _starting(content, keys):
            head = content[at : at + 8]
            candidates |= {form for form in heads[head] if content.startswith(form, at)}
        found |= {(place, kinds[form]) for form in candidates}
    return sorted(found)


def _starting(content, keys):
    """Where one of the sorted 8-byte `keys` begins: a plain search for each would take hours."""
    for shift in range(8):
        whole = content[shift : shift + max(0, len(content) - shift) // 8 * 8]
        words = np.frombuffer(whole, "<u8")
        places = np.searchsorted(keys, words)
        hits = keys[np.minimum(places, len(keys) - 1)] == words
        yield from (8 * np.flatnonzero(hits) + shift).tolist()


def test_nothing_private_is_in_anything_that_left(lived):
    folder, run, left = lived
    wanted = needles(folder, run)
    assert len(wanted["pixels"]) > 10_000 and len(wanted["a metric"]) >= 4
    assert search(left, wanted) == []


def test_what_was_paid_for_is_there_with_its_interval(lived):
    _, run, left = lived
    paid = json.loads((run / "release" / "dp-metrics.json").read_text())
    assert set(paid["classifiers"]) == {"logreg", "mlp"}
    for result in paid["classifiers"].values():
        assert 0 <= result["low"] <= result["value"] <= result["high"] <= 1
    assert not (run / "release" / "metrics.json").exists()
    history = json.loads(left["umbra budget history"].partition(b"\n\n")[0])
    bound = {r["body"]["partition"] for r in history if r["kind"] == "partition"}
    assert bound == {"train", "holdout"}


def test_the_wall_holds_everything_else_back(lived):
    """What is searched for does exist: inside, where it belongs."""
    folder, run, _ = lived
    wanted = needles(folder, run)
    inside = {str(p): p.read_bytes() for p in (run / "internal").rglob("*") if p.is_file()}
    inside |= {str(p): p.read_bytes() for p in (folder / "train").rglob("*.png")}
    inside |= {"pixels": next(_records(folder))[1].values.tobytes()}
    found = {what for _, what in search(inside, wanted)}
    assert {"pixels", "a metric", "a key"} <= found
    assert (run / "internal").stat().st_mode & 0o077 == 0


def test_the_search_finds_what_is_planted(lived):
    """One record in every form, one at a time, in a released file: the search has to see it."""
    folder, run, left = lived
    wanted = needles(folder, run)
    row = next(_records(folder))[1].values[5, 3, :, 0]
    place = next(name for name in left if name.endswith("report.html"))
    page = left[place]
    forms = _forms(row)
    assert len(forms) >= 12
    spoilt = {f"form {i}": page[:500] + form + page[500:] for i, form in enumerate(forms)}
    assert search(spoilt, wanted) == sorted((name, "pixels") for name in spoilt)
    kinds = ("a metric", "a mean", "a digest", "a file's name", "a key")
    spoilt = {kind: page + min(wanted[kind]) for kind in kinds}
    assert search(spoilt, wanted) == sorted((kind, kind) for kind in kinds)
