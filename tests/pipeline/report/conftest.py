"""Made-up facts for a page."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.report.facts import (
    Audit,
    Check,
    ClassifierResult,
    ClassImages,
    Component,
    DatasetBudget,
    Evaluation,
    Guarantee,
    Provenance,
    ReportFacts,
    Run,
    Score,
    Spending,
)

SPEC = """\
name: digits-demo
data:
  name: digits
  source: {kind: digits}
  records: 1437
  size: 8
  channels: 1
privacy:
  epsilon: 10.0
  delta: 1.0e-04
train:
  batch: 256
  views: 4
  steps: 400
"""


def _classifier(name: str, accuracy: float, ceiling: float) -> ClassifierResult:
    generator = np.random.default_rng(len(name))
    confusion = np.zeros((10, 10), dtype=np.int64)
    for row in range(10):
        right = int(36 * min(1.0, accuracy + 0.06 * generator.standard_normal()))
        confusion[row, row] = right
        for column in generator.integers(0, 10, 36 - right):
            confusion[row, column] += 1
    by_class = tuple(float(confusion[k, k] / confusion[k].sum()) for k in range(10))
    return ClassifierResult(name, float(np.mean(by_class)), ceiling, by_class, confusion)


@pytest.fixture(scope="session")
def facts() -> ReportFacts:
    digits, labels = load_digits(return_X_y=True)
    images = (digits.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    steps = (1, *range(10, 401, 10))
    return ReportFacts(
        run=Run(
            "digits-demo",
            "digits-demo-7f3a21",
            "done",
            "2026-11-20 17:02 UTC",
            "2026-11-20 17:07 UTC",
            5000,
            void=False,
        ),
        classes=tuple(
            ClassImages(str(k), images[labels == k][:10], images[labels == k][20:30])
            for k in range(10)
        ),
        budget=DatasetBudget("digits", 15.0, 1e-4, 9.6431, 1.2, 4.9417),
        spending=Spending(
            steps,
            tuple(9.6431 * (0.22 + 0.78 * (t / 400) ** 0.55) for t in steps),
            400,
            9.6431,
            9.6431,
            8.8712,
            8.8405,
            1e-4,
        ),
        guarantee=Guarantee("image", "add/remove with zero-out", 1437),
        components=(
            Component("warm-up", "Gaussian", {"noise multiplier σ": 5.0, "clip norm C": 4.0}, 1),
            Component(
                "training",
                "Poisson-subsampled Gaussian",
                {"noise multiplier σ": 1.9042, "probability q": 1 / 6, "clip norm C": 1.0},
                400,
            ),
        ),
        evaluation=Evaluation(
            "360 real images of the public holdout, never trained on",
            (
                _classifier("Logistic regression", 0.89, 0.953),
                _classifier("MLP", 0.914, 0.969),
                _classifier("CNN", 0.941, 0.986),
            ),
            (
                Score(
                    "Fréchet distance (builtin-conv)",
                    12.418,
                    "lower",
                    "Distance between the two clouds of features, as normal distributions.",
                ),
                Score(
                    "Precision",
                    0.8123,
                    "higher",
                    "Share of synthetic images that look like some real one.",
                ),
                Score(
                    "Recall",
                    0.6441,
                    "higher",
                    "Share of real images that some synthetic one looks like.",
                ),
                Score("Density", 0.9012, "higher", "Precision that outliers cannot flatter."),
                Score("Coverage", 0.7789, "higher", "Recall that outliers cannot flatter."),
            ),
        ),
        audit=Audit(
            "passed",
            (
                Check("Chain of hashes", True, "412 rows, none changed or missing"),
                Check("ε recomputed", True, "9.6428 by Opacus from raw rows, 9.6431 admitted"),
                Check("Exported files", True, "5 shards match the manifest"),
            ),
        ),
        provenance=Provenance(
            SPEC,
            "2f0c1d7e-ledger",
            "9b" * 32,
            "4e" * 32,
            {"umbra": "0.1.0", "torch": "2.13.0", "ray": "2.60.0", "mlflow": "3.17.2"},
            {"Machine": "2 cores, 8 GiB, no GPU"},
            (
                ("plan", 1.2),
                ("ingest", 0.4),
                ("train", 188.0),
                ("sample", 61.0),
                ("evaluate", 40.5),
                ("report", 2.0),
            ),
        ),
    )


@pytest.fixture
def private_facts(facts: ReportFacts) -> ReportFacts:
    """The same run with a private reference."""
    return replace(
        facts,
        evaluation=None,
        classes=tuple(replace(item, reference=None) for item in facts.classes),
    )
