"""The results of an evaluation: their shape, and which of them may be released."""

from typing import Any

from pipeline.spec import Spec

METRICS = "metrics.json"
SYNTHETIC, CEILING, FEATURES = "synthetic", "ceiling", "features"


def releasable(spec: Spec, results: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the results that no private image entered."""
    holdout = spec.data.holdout
    if holdout is None or not holdout.public:
        return {}
    return results if spec.data.public else {**results, CEILING: {}}


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
    distance, balls = results[FEATURES]["frechet"], results[FEATURES]["precision_recall"]
    metrics[distance["metric"]] = distance["distance"]
    for name in ("precision", "recall", "density", "coverage"):
        metrics[name] = balls[name]
    return metrics
