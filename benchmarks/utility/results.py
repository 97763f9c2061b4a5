"""The results that are there, as a table with means, intervals and the peers' published numbers."""

import json
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from scipy.stats import t as student

from eval.settings import CLASSIFIER_NAMES

#: (set, ε) -> (logreg, mlp, cnn) in per cent, tuned for accuracy: Dockhorn et al. 2023, table 4.1.
DPDM = {
    ("mnist", 0.2): (81.0, 81.7, 86.3),
    ("mnist", 1.0): (86.7, 91.6, 95.3),
    ("mnist", 10.0): (90.8, 94.8, 98.1),
    ("fashion-mnist", 0.2): (70.4, 71.3, 72.3),
    ("fashion-mnist", 1.0): (76.3, 76.9, 79.4),
    ("fashion-mnist", 10.0): (81.1, 83.0, 86.2),
}


@dataclass
class Row:
    """What was measured of one spec, over its repeats.

    Attributes:
        data, method, spec: the data set, the method and the spec's file name without its suffix.
        epsilon: the ε that was declared and spent.
        accuracies: classifier -> accuracy of each repeat, in [0, 1].
        distances: Fréchet distance of each repeat.
        minutes: of fit and sampling, each repeat.
    """

    data: str
    method: str
    spec: str
    epsilon: float
    accuracies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    distances: list[float] = field(default_factory=list)
    minutes: list[float] = field(default_factory=list)


def load_results(folder: Path) -> list[Row]:
    """Return a row for each spec and method under `folder`, sorted by set, ε and method."""
    rows: dict[str, Row] = {}
    for path in sorted(folder.glob("*/*/*/*/fit.json")):
        fit = json.loads(path.read_text())
        key, spec = str(path.parents[1]), path.parents[2].name
        row = rows.setdefault(key, Row(fit["data"], fit["method"], spec, float(fit["epsilon"])))
        row.minutes.append(fit["fit and sampling seconds"] / 60)
        for result in sorted(path.parent.glob("*-*.json")):
            found = json.loads(result.read_text())
            row.accuracies[found["classifier"]].append(found["accuracy"])
        if (distance := path.parent / "frechet.json").exists():
            row.distances.append(json.loads(distance.read_text())["distance"])
    return sorted(rows.values(), key=lambda row: (row.data, row.epsilon, row.method))


def markdown(rows: list[Row]) -> str:
    """Return the table: per cent, mean and half of the 95 % interval over the repeats."""
    lines = [
        "| set | ε | method | logreg | mlp | cnn | Fréchet | minutes | repeats |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracies = [_percent(row.accuracies[name]) for name in CLASSIFIER_NAMES]
        lines.append(
            f"| {row.data} | {row.epsilon:g} | {row.method} ({row.spec}) | "
            f"{' | '.join(accuracies)} | {_interval(row.distances, 3)} | "
            f"{_interval(row.minutes, 1)} | {len(row.minutes)} |"
        )
    for (data, epsilon), published in DPDM.items():
        if any((row.data, row.epsilon) == (data, epsilon) for row in rows):
            figures = " | ".join(f"{figure:.1f}" for figure in published)
            lines.append(f"| {data} | {epsilon:g} | DPDM, published | {figures} | – | – | 1 |")
    return "\n".join(lines)


def _percent(values: list[float]) -> str:
    return _interval([100 * value for value in values], 1)


def _interval(values: list[float], digits: int) -> str:
    """Return the mean and, from two values on, ± half of Student's 95 % interval."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    quantile = student.ppf(0.975, len(values) - 1)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {half:.{digits}f}"
