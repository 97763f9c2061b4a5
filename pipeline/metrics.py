"""The results of an evaluation: their shape, and which of them may be released."""

import json
from typing import Any

from pipeline.run_directory import RunDirectory
from pipeline.spec import Spec
from privacy.errors import IntegrityBroken

METRICS = "metrics.json"
SYNTHETIC, CEILING, FEATURES = "synthetic", "ceiling", "features"


def releasable(spec: Spec, results: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the results that no private image entered.

    Nothing where the holdout is private; all but the ceiling, which is measured with the training
    images themselves, where only the holdout is public.
    """
    holdout = spec.data.holdout
    if holdout is None or not holdout.public:
        return {}
    return results if spec.data.public else {**results, CEILING: {}}


def released(run: RunDirectory) -> dict[str, Any]:
    """Return what a run released of its evaluation; empty where that is nothing.

    The rule is applied once more: what is read here goes on into exports.

    Raises:
        IntegrityBroken: the file is damaged, or the spec is.
    """
    path = run.release / METRICS
    if not path.exists():
        return {}
    try:
        results = releasable(run.spec(), json.loads(path.read_bytes()))
        if results:
            flat(results)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityBroken(
            f"{path} is damaged. Put it back from a copy, or remove it to go on without metrics."
        ) from error
    return results


def flat(results: dict[str, Any]) -> dict[str, float]:
    """Return results as metric names and values, as MLflow keeps them."""
    metrics: dict[str, float] = {}
    for name, result in results[SYNTHETIC].items():
        metrics[f"{name}.accuracy"] = result["accuracy"]
        for label, accuracy in enumerate(result["per_class"]):
            if accuracy is not None:
                metrics[f"{name}.class.{label}"] = accuracy
    for name, result in results[CEILING].items():
        metrics[f"{name}.ceiling"] = result["accuracy"]
    return metrics | likeness(results)


def likeness(results: dict[str, Any]) -> dict[str, float]:
    """Return the metrics on features by name, the Fréchet distance under its extractor's."""
    distance, balls = results[FEATURES]["frechet"], results[FEATURES]["precision_recall"]
    names = ("precision", "recall", "density", "coverage")
    return {distance["metric"]: distance["distance"]} | {name: balls[name] for name in names}
