"""The figures of an evaluation that may be released, and noisy ones that were paid for.

A classifier's number of correct answers on a private holdout, and the holdout's images of a class,
each change by at most one with a record. The discrete Laplace mechanism releases them, charged to
the holdout's part of the data set's budget.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np

from pipeline.plan import ACCURACY, CLASS_COUNTS
from pipeline.runs.directory import RunDirectory
from privacy.accounting.base import round_up
from privacy.budget import Budget, Reservation
from privacy.budget.facts import Shown
from privacy.errors import IntegrityBroken
from privacy.mechanisms import DiscreteLaplace
from privacy.noisy_counts import NoisyAccuracy, NoisyCount, accuracy_interval, noisy_counts
from synth.storage import StoragePath

METRICS, DP_METRICS = "metrics.json", "dp-metrics.json"
SYNTHETIC, CEILING, FEATURES = "synthetic", "ceiling", "features"
_Parsed = TypeVar("_Parsed")


def releasable(shown: Shown, results: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the results that depends on no private image, as the ledger says.

    That is nothing where the holdout is private, and all but the ceiling, which is measured with
    the training images themselves, where only the holdout is public.
    """
    if not shown.holdout:
        return {}
    return results if shown.train else {**results, CEILING: {}}


def released(run: RunDirectory, budget: Budget) -> dict[str, Any]:
    """Return what a run released of its evaluation; empty where that is nothing.

    Raises:
        IntegrityBroken: the file is damaged.
    """
    reservation_id = run.state().reservation_id
    shown = Shown() if reservation_id is None else budget.shown(reservation_id)

    def parse(record: dict[str, Any]) -> dict[str, Any]:
        # Apply the rule again: what is read here goes into exports, and what was public when it
        # was written may have been found to be private since.
        results = releasable(shown, record)
        if results:
            flat(results)  # raises if a figure is missing
        return results

    return _read(run.release / METRICS, parse) or {}


def _read(path: StoragePath, parse: Callable[[dict[str, Any]], _Parsed]) -> _Parsed | None:
    """Return the parsed file; None where there is none. Raises IntegrityBroken if damaged."""
    if not path.exists():
        return None
    try:
        return parse(json.loads(path.read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityBroken(
            f"{path} is damaged. Put it back from a copy, or remove it to go on without metrics."
        ) from error


def flat(results: dict[str, Any]) -> dict[str, float]:
    """Return results as metric names and values, as MLflow records them."""
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
    distance, prdc = results[FEATURES]["frechet"], results[FEATURES]["precision_recall"]
    names = ("precision", "recall", "density", "coverage")
    return {distance["metric"]: distance["distance"]} | {name: prdc[name] for name in names}


@dataclass(frozen=True)
class PaidMetrics:
    """Everything that a run released about a private holdout."""

    records: int  # images of the holdout, public
    epsilon: float  # of all of it together, at δ = 0, rounded up
    confidence: float  # of every interval by itself
    classifiers: dict[str, NoisyAccuracy]  # trained on synthetic images, by name
    class_counts: tuple[NoisyCount, ...] = ()  # by class; empty where they were not asked for

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "PaidMetrics":
        """Read what `asdict` returned. Raises KeyError, TypeError, ValueError on other input."""
        found = {name: NoisyAccuracy(**each) for name, each in record["classifiers"].items()}
        counts = tuple(NoisyCount(**each) for each in record["class_counts"])
        epsilon, confidence = float(record["epsilon"]), float(record["confidence"])
        return cls(int(record["records"]), epsilon, confidence, found, counts)

    def flat(self) -> dict[str, float]:
        """Return metric names and values, as `Release.paid` takes them."""
        metrics = {"epsilon": self.epsilon}
        for name, found in self.classifiers.items():
            metrics |= _with_interval(f"{name}.accuracy", found)
        for label, count in enumerate(self.class_counts):
            metrics |= _with_interval(f"class.{label}.count", count)
        return metrics


def release(results: Mapping[str, Any], paid_by: Reservation) -> PaidMetrics:
    """Draw the noise once and return what may be shown; the plan must be charged in full.

    Args:
        results: what `pipeline.cluster.evaluation.evaluate` returned; private.
        paid_by: the holdout's reservation, whose plan says what is released.
    """
    confusions = {n: np.asarray(r["confusion"]) for n, r in results[SYNTHETIC].items()}
    right = _mechanism(paid_by, ACCURACY)
    assert right is not None  # noqa: S101 - every such plan has it
    accuracies = {
        name: accuracy_interval(_noisy([np.trace(matrix)], right)[0].value, paid_by.records, right)
        for name, matrix in confusions.items()
    }
    by_class = _mechanism(paid_by, CLASS_COUNTS)
    truth = next(iter(confusions.values())).sum(axis=1)  # rows of a confusion are true classes
    return PaidMetrics(
        records=paid_by.records,
        epsilon=_epsilon(m for m in (right, by_class) if m is not None),
        confidence=next(iter(accuracies.values())).confidence,
        classifiers=accuracies,
        class_counts=() if by_class is None else _noisy(truth, by_class),
    )


def paid_metrics(run: RunDirectory) -> PaidMetrics | None:
    """Return what a run released against a private holdout, None where it released nothing.

    Raises:
        IntegrityBroken: the file is damaged.
    """
    return _read(run.release / DP_METRICS, PaidMetrics.from_dict)


def _mechanism(paid_by: Reservation, component: str) -> DiscreteLaplace | None:
    for part in paid_by.plan:
        if part.name == component:
            assert isinstance(part.mechanism, DiscreteLaplace)  # noqa: S101 - as plans are made
            return part.mechanism
    return None


def _epsilon(mechanisms: Iterable[DiscreteLaplace]) -> float:
    """Return ε of pure mechanisms together; exact until it is rounded up."""
    costs = (Fraction(m.steps) / Fraction(m.noise_multiplier) for m in mechanisms)
    return round_up(float(sum(costs)))


def _noisy(counts: Any, mechanism: DiscreteLaplace) -> tuple[NoisyCount, ...]:
    # A record is at most one correct answer, and in one class: the L1 sensitivity is 1.
    return noisy_counts([int(count) for count in counts], 1, mechanism)


def _with_interval(name: str, found: NoisyAccuracy | NoisyCount) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
