"""Metrics as Ray tasks, side by side: each loads what it compares and returns plain numbers."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch

from eval.features import extractor
from eval.frechet import feature_moments, frechet
from eval.prdc import precision_recall
from eval.utility import train_and_test
from pipeline.cluster.calls import get_result, sanitize_errors, wait, waiting_for_room
from pipeline.metrics import CEILING, FEATURES, SYNTHETIC
from pipeline.runs.dataset_identity import HOLDOUT, TRAIN, DatasetIdentity, load_partition
from pipeline.spec import Evaluate, Spec
from privacy.records import LabelledRecords
from synth.data.shards import read_shards
from synth.storage import StoragePath

_RETRIES = 3


def evaluate(
    spec: Spec,
    release: StoragePath,
    traces: Path,
    on_task: Callable[[], None],
    holdout: DatasetIdentity | None = None,
) -> dict[str, Any]:
    """Run every metric that the spec asks for and return them by kind and name.

    `on_task` is called whenever one is done. Where a budget was reserved for the holdout, it has to
    be the one that was reserved for.

    Returns:
        {"synthetic": {classifier: result}, "ceiling": {classifier: result}, "features": {...}},
        where the ceiling is trained on the real images. The caller decides what may be released.

    Raises:
        UmbraError: as a task raised it.
    """
    # A task whose worker or machine died is done again elsewhere; one that raised is not.
    task = ray.remote(_measure).options(num_cpus=1, max_retries=_RETRIES, retry_exceptions=False)
    room = task.remote(traces, dict)  # ends as soon as the others have room
    names = _section(spec).classifiers
    of = (spec, release, holdout)
    tasks = {
        task.remote(traces, _classify, *of, kind, name): (kind, name)
        for name in names
        for kind in (SYNTHETIC, CEILING)
    }
    features = task.remote(traces, _compare_features, *of)
    with waiting_for_room("metrics", {"CPU": 1}):
        get_result(room)
    # Tasks end in any order; the results are in the order of the spec.
    results: dict[str, Any] = {kind: dict.fromkeys(names) for kind in (SYNTHETIC, CEILING)}
    waiting = [features, *tasks]
    while waiting:
        (done,), waiting = wait(waiting)
        if done is features:
            results[FEATURES] = get_result(done)
        else:
            kind, name = tasks[done]
            results[kind][name] = get_result(done)
        on_task()
    return results


def _measure(traces: Path, metric: Callable[..., dict[str, Any]], *of: Any) -> dict[str, Any]:
    with sanitize_errors(traces):
        torch.set_num_threads(1)
        return metric(*of)


def _classify(
    spec: Spec, release: StoragePath, holdout: DatasetIdentity | None, kind: str, name: str
) -> dict[str, Any]:
    section = _section(spec)
    train = _synthetic(release) if kind == SYNTHETIC else load_partition(spec.data, TRAIN)
    test = load_partition(spec.data, HOLDOUT, holdout)
    result = train_and_test(
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


def _compare_features(
    spec: Spec, release: StoragePath, holdout: DatasetIdentity | None
) -> dict[str, Any]:
    section = _section(spec)
    path = None if section.features == "builtin" else section.features
    extract = extractor("gabor" if path is None else "inception", spec.data.channels, path)
    sets = load_partition(spec.data, HOLDOUT, holdout).values, _synthetic(release).values
    distance = frechet(extract.metric, *(feature_moments(extract, images) for images in sets))
    features = (extract(images) for images in sets)
    prdc = precision_recall(*features, nearest=section.neighbours, seed=section.seed)
    return {"frechet": asdict(distance), "precision_recall": asdict(prdc)}


def _section(spec: Spec) -> Evaluate:
    assert spec.evaluate is not None  # noqa: S101 - the stage asked first
    return spec.evaluate


def _synthetic(release: StoragePath) -> LabelledRecords:
    return LabelledRecords.concatenate(read_shards(release))
