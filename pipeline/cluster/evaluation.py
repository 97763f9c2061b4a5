"""Metrics as Ray tasks, side by side: each loads what it compares and returns plain numbers."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch

from eval import features, frechet, prdc, utility
from pipeline.cluster import calls
from pipeline.metrics import CEILING, FEATURES, SYNTHETIC
from pipeline.runs import dataset_identity as identity
from pipeline.spec import Evaluate, Spec
from privacy.records import LabelledRecords
from synth.data.shards import read_shards
from synth.storage import StoragePath

_RETRIES = 3
_Known = Mapping[str, identity.DatasetIdentity]
_NOTHING: _Known = {}


def evaluate(
    spec: Spec,
    release: StoragePath,
    traces: Path,
    on_task: Callable[[], None],
    known: _Known = _NOTHING,
) -> dict[str, Any]:
    """Run every metric that the spec asks for and return them by kind and name.

    `on_task` is called whenever one is done. The images have to be those that are `known`.

    Returns:
        {"synthetic": {classifier: result}, "ceiling": {classifier: result}, "features": {...}},
        where the ceiling is trained on the real images. The caller decides what may be released.

    Raises:
        UmbraError: as a task raised it.
    """
    # A task whose worker or machine died is done again elsewhere; one that raised is not.
    task = ray.remote(_measure).options(num_cpus=1, max_retries=_RETRIES, retry_exceptions=False)
    # Ends as soon as the others have room.
    room = task.remote(traces, dict)
    names, of = _section(spec).classifiers, (spec, release, known)
    tasks = {
        task.remote(traces, _classify, *of, kind, name): (kind, name)
        for name in names
        for kind in (SYNTHETIC, CEILING)
    }
    compared = task.remote(traces, _compare_features, *of)
    with calls.waiting_for_room("metrics", {"CPU": 1}):
        calls.get_result(room)
    # Tasks end in any order; the results are in the order of the spec.
    results: dict[str, Any] = {kind: dict.fromkeys(names) for kind in (SYNTHETIC, CEILING)}
    waiting = [compared, *tasks]
    while waiting:
        (done,), waiting = calls.wait(waiting)
        if done is compared:
            results[FEATURES] = calls.get_result(done)
        else:
            kind, name = tasks[done]
            results[kind][name] = calls.get_result(done)
        on_task()
    return results


def _measure(traces: Path, metric: Callable[..., dict[str, Any]], *of: Any) -> dict[str, Any]:
    with calls.sanitize_errors(traces):
        torch.set_num_threads(1)
        return metric(*of)


def _classify(
    spec: Spec, release: StoragePath, known: _Known, kind: str, name: str
) -> dict[str, Any]:
    section = _section(spec)
    train = _synthetic(release) if kind == SYNTHETIC else _real(spec, identity.TRAIN, known)
    test = _real(spec, identity.HOLDOUT, known)
    result = utility.train_and_test(
        name,
        train.values,
        train.labels,
        test.values,
        test.labels,
        classes=len(spec.data.classes),
        epochs=section.epochs,
        learning_rate=section.learning_rate,
        seed=section.seed,
    )
    return asdict(result)


def _compare_features(spec: Spec, release: StoragePath, known: _Known) -> dict[str, Any]:
    section = _section(spec)
    path = None if section.features == "builtin" else section.features
    extract = features.extractor("gabor" if path is None else "inception", spec.data.channels, path)
    real = _real(spec, identity.HOLDOUT, known)
    sets = real.values, _synthetic(release).values
    moments = (frechet.feature_moments(extract, images) for images in sets)
    distance = frechet.frechet(extract.metric, *moments)
    both = (extract(images) for images in sets)
    nearest = prdc.precision_recall(*both, nearest=section.neighbours, seed=section.seed)
    return {"frechet": asdict(distance), "precision_recall": asdict(nearest)}


def _section(spec: Spec) -> Evaluate:
    assert spec.evaluate is not None  # noqa: S101 - the stage asked first
    return spec.evaluate


def _real(spec: Spec, part: str, known: _Known) -> LabelledRecords:
    return identity.load_partition(spec.data, part, known.get(part))


def _synthetic(release: StoragePath) -> LabelledRecords:
    return LabelledRecords.concatenate(read_shards(release))
