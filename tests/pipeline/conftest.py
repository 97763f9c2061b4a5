"""A small private data set, a home, and runs that are finished without Ray."""

import fcntl
import hashlib
import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from pipeline.home import Home
from pipeline.metrics import METRICS, releasable
from pipeline.plan import plan
from pipeline.runs import origin
from pipeline.runs.directory import RunDirectory
from pipeline.runs.export import export_run
from pipeline.runs.ingest import ingest
from pipeline.runs.ledger_access import LedgerAccess
from pipeline.spec import Spec, parse_spec
from privacy.budget import Budget
from privacy.ledger import Ledger
from privacy.ledger.records import Facts
from synth.data.manifest import Manifest
from synth.data.shards import encode_png, plan_shards, write_shard
from synth.origin import seal_tensors, weights_mark
from synth.storage import write_bytes, write_json

BLOTS = """\
name: blots
data:
  name: blots
  source: {kind: npz, path: train.npz}
  records: 40
  size: 8
  channels: 1
  classes: [round, square]
  holdout:
    source: {kind: npz, path: holdout.npz}
    public: true
privacy:
  epsilon: 8
  delta: 1e-3
model:
  base: 4
  multipliers: [1]
  attention: []
  blocks: 1
train:
  batch: 20
  steps: 4
  views: 2
synthesize:
  images: 12
  sampler: ddim
  steps: 2
  shard_rows: 5
evaluate:
  classifiers: [logreg, mlp]
"""


@dataclass(frozen=True)
class House:
    """A home with its ledger open, and how runs are made in it."""

    home: Home

    @property
    def access(self) -> LedgerAccess:
        return LedgerAccess.of(self.home)

    @property
    def key(self) -> bytes:
        return self.access.key

    @property
    def budget(self) -> Budget:
        return Budget(self.access.open())

    def kinds(self) -> list[str]:
        """The kinds of the ledger's rows."""
        return [row.kind for row in Ledger.open(self.home.ledger_url).rows()]

    def reserve(self, spec: Spec) -> RunDirectory:
        """A run as `submit` leaves it, before anything is trained."""
        self.declare(spec)
        run = self.home.new_run(spec)
        ingest(run, spec, plan(spec, trial=False), self.key, self.budget)
        return run

    def declare(self, spec: Spec) -> None:
        """Declare what the spec says of its data set, where nobody has yet."""
        found = self.budget.odometer(spec.data.name)
        if found.facts is None:
            data, privacy = spec.data, spec.privacy
            shown = (data.public, data.holdout is not None and data.holdout.public)
            facts = Facts(privacy.unit, privacy.records_per_unit, *shown)
            self.budget.declare(spec.data.name, found.epsilon, found.delta, facts)

    def charge(self, run: RunDirectory, component: str, steps: int) -> None:
        """Charge some steps, as a first attempt that died would have."""
        reserved = run.state().reservation_id
        attempt = self.budget.begin_attempt(reserved, "attempt-1")
        self.budget.charge(reserved, component, steps, attempt, "first")

    def finish(self, run: RunDirectory) -> RunDirectory:
        """Charge, settle and make random images and made-up metrics, as the stages would."""
        spec, reserved = run.spec(), run.state().reservation_id
        run.begin()
        budget = self.budget
        attempt = budget.begin_attempt(reserved, "attempt-1")
        for part in budget.reservation(reserved).plan:
            budget.charge(reserved, part.name, part.mechanism.steps, attempt, f"all-{part.name}")
        weights = seal_tensors(
            save({"w": np.zeros(1)}), origin.origin_of(run, budget.reservation(reserved))
        )
        write_bytes(run.release / origin.WEIGHTS, weights)
        budget.settle(reserved, hashlib.sha256(weights).hexdigest())
        run.finish_stage("train", 3.0)
        _write_images(run, spec, weights_mark(weights))
        run.finish_stage("synthesize", 2.0)
        results = _results(spec)
        (run.internal / METRICS).write_text(json.dumps(results))
        if released := releasable(budget.shown(reserved), results):
            write_json(run.release / METRICS, released)
        run.finish_stage("evaluate", 1.0)
        steps = max(part.mechanism.steps for part in budget.reservation(reserved).plan)
        run.update(status="done", process=None, trained_steps=steps)
        return run

    def export(self, run: RunDirectory, target: Path, form: str = "parquet") -> Path:
        return export_run(run, self.budget, target, form).folder


def _write_images(run, spec, mark):
    data = spec.data
    rng = np.random.default_rng(1)
    counts = spec.synthesize.class_counts(len(data.classes))
    shards = plan_shards(counts, spec.synthesize.shard_rows)
    entries = []
    for shard in shards:
        shape = (len(shard.labels), data.size, data.size, data.channels)
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        pngs = [encode_png(image) for image in images]
        made = write_shard(
            run.release, shard, len(shards), pngs, class_names=data.classes, mark=mark
        )
        origin.note_shard(run, mark["weights"], shard.number, made)
        entries.append(made)
    shape = (data.size, data.size, data.channels)
    Manifest(shape, data.classes, counts, tuple(entries)).write(run.release)


def _results(spec):
    def classified(accuracy):
        return {
            "accuracy": accuracy,
            "per_class": [accuracy] * len(spec.data.classes),
            "confusion": [[9, 1], [2, 8]],
        }

    names = spec.evaluate.classifiers if spec.evaluate else ()
    return {
        "synthetic": {name: classified(0.8125) for name in names},
        "ceiling": {name: classified(0.96875) for name in names},
        "features": {
            "frechet": {"metric": "frechet_gabor", "distance": 12.5},
            "precision_recall": {
                "precision": 0.75,
                "recall": 0.625,
                "density": 0.875,
                "coverage": 0.5625,
            },
        },
    }


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Call `make(folder)` once for all of xdist's workers, and return what it returned."""

    def once(name, make):
        base = tmp_path_factory.getbasetemp()
        shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder = shared / name
            made = folder / "made.pickle"
            if not folder.exists():
                folder.mkdir()
                made.write_bytes(pickle.dumps(make(folder)))
            # Without the file, the making failed in another worker, which shows why.
            return pickle.loads(made.read_bytes())

    return once


@pytest.fixture(scope="session")
def blots(tmp_path_factory) -> Path:
    """A folder with a private and a holdout set of random images, and the spec for them."""
    folder = tmp_path_factory.mktemp("blots")
    for name, records in (("train", 40), ("holdout", 20)):
        rng = np.random.default_rng(records)
        images = rng.integers(0, 256, (records, 8, 8, 1), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=np.arange(records) % 2)
    (folder / "blots.yaml").write_text(BLOTS)
    return folder


@pytest.fixture
def blots_spec(blots):
    """The spec of the random images with parts of its text replaced."""

    def edit(*changes):
        text = BLOTS
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return parse_spec(text, folder=blots)

    return edit


def _house(path: Path) -> House:
    return House(Home.locate({"UMBRA_HOME": str(path)}))


@pytest.fixture(scope="session")
def _declared(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("declared") / "home"
    house = _house(path)
    house.home.ensure()
    house.budget.declare("blots", 8.5, 1e-3)
    return path


@pytest.fixture(scope="session")
def _finished(tmp_path_factory, _declared, blots) -> Path:
    path = tmp_path_factory.mktemp("finished") / "home"
    shutil.copytree(_declared, path)
    house = _house(path)
    house.finish(house.reserve(parse_spec(BLOTS, folder=blots)))
    return path


@pytest.fixture
def house(tmp_path, _declared) -> House:
    """A home where the data set "blots" may spend ε = 8.5 at δ = 1e-3."""
    shutil.copytree(_declared, tmp_path / "home")
    return _house(tmp_path / "home")


@pytest.fixture
def finished(tmp_path, _finished) -> tuple[House, RunDirectory]:
    """The same with one run that is done."""
    shutil.copytree(_finished, tmp_path / "home")
    house = _house(tmp_path / "home")
    (run,) = house.home.runs()
    return house, run


@pytest.fixture
def tamper():
    """Run SQL on a ledger as somebody who can write its file would, triggers taken off first."""
    import sqlite3

    def run(house: House, statement: str) -> None:
        connection = sqlite3.connect(house.home.path / "ledger.db")
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)
        for _, sql in triggers:
            connection.execute(sql)
        connection.commit()
        connection.close()

    return run


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """An MLflow database with its tables and nothing of ours: making one takes seconds."""
    from pipeline.tracking.tracker import connect

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path
