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
from pipeline.cluster.calls import get_result, sanitize_errors, wait
from pipeline.metrics import CEILING, FEATURES, SYNTHETIC
from pipeline.runs.dataset_identity import HOLDOUT, TRAIN, DatasetIdentity, load_partition
from pipeline.spec import Spec
from pipeline.spec.sections import Evaluate
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

    Args:
        spec: what to measure, and against which images.
        release: folder with the synthetic images.
        traces: folder for the traces of unforeseen errors (internal).
        on_task: called whenever one of the metrics is done.
        holdout: what the holdout has to be, where a budget was reserved for it.

    Returns:
        {"synthetic": {classifier: result}, "ceiling": {classifier: result}, "features": {...}},
        where the ceiling is the same classifier trained on the real training images. Whether any
        of it may be released is the caller's to decide.

    Raises:
        UmbraError: as a task raised it.
    """
    # A task whose worker or machine died is done again elsewhere; one that raised is not.
    task = ray.remote(_measure).options(num_cpus=1, max_retries=_RETRIES, retry_exceptions=False)
    kinds = (SYNTHETIC, CEILING)
    names = _wanted(spec).classifiers
    tasks = {
        task.remote(traces, _classify, spec, release, holdout, kind, name): (kind, name)
        for name in names
        for kind in kinds
    }
    features = task.remote(traces, _compare_features, spec, release, holdout)
    # Tasks end in any order; the results are in the order of the spec.
    results: dict[str, Any] = {kind: dict.fromkeys(names) for kind in kinds}
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
        return metric(*of)


def _classify(
    spec: Spec, release: StoragePath, holdout: DatasetIdentity | None, kind: str, name: str
) -> dict[str, Any]:
    torch.set_num_threads(1)
    evaluate = _wanted(spec)
    train = _synthetic(release) if kind == SYNTHETIC else load_partition(spec.data, TRAIN)
    test = load_partition(spec.data, HOLDOUT, holdout)
    result = train_and_test(
        name,
        train.values,
        train.labels,
        test.values,
        test.labels,
        classes=len(spec.data.classes),
        epochs=evaluate.epochs,
        learning_rate=evaluate.learning_rate,
        seed=evaluate.seed,
    )
    return asdict(result)


def _compare_features(
    spec: Spec, release: StoragePath, holdout: DatasetIdentity | None
) -> dict[str, Any]:
    torch.set_num_threads(1)
    wanted = _wanted(spec)
    path = None if wanted.features == "builtin" else wanted.features
    extract = extractor("gabor" if path is None else "inception", spec.data.channels, path)
    real = load_partition(spec.data, HOLDOUT, holdout).values
    synthetic = _synthetic(release).values
    distance = frechet(
        extract.metric, feature_moments(extract, real), feature_moments(extract, synthetic)
    )
    prdc = precision_recall(
        extract(real), extract(synthetic), nearest=wanted.neighbours, seed=wanted.seed
    )
    return {"frechet": asdict(distance), "precision_recall": asdict(prdc)}


def _wanted(spec: Spec) -> Evaluate:
    assert spec.evaluate is not None  # noqa: S101 - the stage asked first
    return spec.evaluate


def _synthetic(release: StoragePath) -> LabelledRecords:
    return LabelledRecords.concatenate(read_shards(release))
