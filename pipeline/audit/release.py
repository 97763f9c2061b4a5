"""`umbra audit release`: do the released images repeat training images, or give members away?

The only audit that opens private images: the training set, and the holdout that was kept out of
training. What it finds was computed from them without noise, so it stays in the run's `internal/`
folder; only where both sets are public in truth may it be shown.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.features import extractor
from eval.memorisation import CAVEAT, copies, membership_attacks
from pipeline.home import Home
from pipeline.progress import Progress
from pipeline.runs.dataset_identity import (
    HOLDOUT,
    RUN_KEY,
    TRAIN,
    DatasetIdentity,
    load_partition,
    require_kept,
)
from pipeline.runs.directory import RunDirectory
from pipeline.runs.ledger_access import read_budget
from pipeline.spec import Spec
from privacy.budget.facts import Shown
from privacy.errors import IntegrityBroken, InvalidRequest
from privacy.records import LabelledRecords
from synth.data.manifest import verify
from synth.data.shards import read_shards
from synth.storage import write_json

FILE = "release-audit.json"


@dataclass(frozen=True)
class ReleaseAudit:
    """Where the findings are."""

    run_id: str
    written: Path  # the internal file with all of them
    public: dict[str, Any] | None  # the same, where they may be shown

    def to_dict(self) -> dict[str, Any]:
        """Return what may be shown as plain JSON values."""
        return {
            "run": self.run_id,
            "written": str(self.written),
            "may_be_shared": self.public is not None,
            "findings": self.public,
        }


def require_release(run: RunDirectory) -> Spec:
    """Return the spec of a run whose release can be audited; opens nothing private.

    Raises InvalidRequest where it has no images, or no holdout to compare with, and IntegrityBroken
    where its spec, state, images or recorded data set identity are damaged.
    """
    state, spec = run.state(), run.evaluated_spec()
    if not state.is_done("synthesize"):
        raise InvalidRequest(f"run {run.run_id} is {state.status} and has no finished images")
    if spec.data.holdout is None:
        raise InvalidRequest(
            f"run {run.run_id} names no data.holdout, and without real images that were kept out "
            "of training nothing tells a copy from a likeness"
        )
    needed = [RUN_KEY, f"{TRAIN}-content"]
    if state.holdout_reservation_id is not None:
        needed.append(f"{HOLDOUT}-content")
    gone = [name for name in needed if not (run.internal / name).is_file()]
    found = [*(f"missing: internal/{name}" for name in gone), *verify(run.release)]
    if found:
        raise IntegrityBroken(f"run {run.run_id}: {'; '.join(found)}. Restore it from a backup.")
    return spec


def audit_release(home: Home, run: RunDirectory, progress: Progress) -> ReleaseAudit:
    """Compare a run's images with its training set and its holdout, and record what is found.

    No distance passes or fails: see `eval.memorisation`. Raises as `require_release`, and DataError
    where the training set or a paying holdout is not what the run was reserved for.
    """
    spec = require_release(run)
    train, holdout = _private(run, spec)
    synthetic = LabelledRecords.concatenate(read_shards(run.release))
    findings: dict[str, Any] = {"caveat": CAVEAT, "run": run.run_id, "spaces": {}}
    sets = (synthetic.values, train.values, holdout.values)
    for name, space in _spaces(spec).items():
        findings["spaces"][name] = _compare(name, [space(images) for images in sets], progress)
    path = run.internal / FILE
    write_json(path, findings)
    reserved = run.state().reservation_id
    shown = Shown() if reserved is None else read_budget(home).shown(reserved)
    require_kept(DatasetIdentity.kept(run, spec.data.name), shown)
    return ReleaseAudit(run.run_id, path, findings if shown.train and shown.holdout else None)


def _private(run: RunDirectory, spec: Spec) -> tuple[LabelledRecords, LabelledRecords]:
    """Load the training set and the holdout, and verify that they are what was reserved for."""
    known = DatasetIdentity.kept(run, spec.data.name)
    train = load_partition(spec.data, TRAIN, known[TRAIN])
    return train, load_partition(spec.data, HOLDOUT, known.get(HOLDOUT))


def _spaces(spec: Spec) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return where images are compared: in pixels and in the features of the spec's evaluation."""
    spaces: dict[str, Callable[[np.ndarray], np.ndarray]] = {"pixels": lambda images: images}
    if spec.evaluate is not None:
        path = None if spec.evaluate.features == "builtin" else spec.evaluate.features
        kind = "gabor" if path is None else "inception"
        try:
            extract = extractor(kind, spec.data.channels, path)
        except ValueError as error:
            raise InvalidRequest(f"evaluate.features: {error}") from None
        spaces[extract.name] = extract
    return spaces


def _compare(name: str, sets: list[np.ndarray], progress: Progress) -> dict[str, Any]:
    real = len(sets[1]) + len(sets[2])
    with progress.stage(f"copies in {name}", real) as stage:
        found = copies(*sets, on_progress=stage.reach)
    with progress.stage(f"members by {name}", real) as stage:
        attacks = membership_attacks(*sets, on_progress=stage.reach)
    return {
        "copies": asdict(found),
        "membership": {attack: asdict(measured) for attack, measured in attacks.items()},
    }
