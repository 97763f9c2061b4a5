"""Paid counts against a toy holdout, as the mechanism's audit releases them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from eval.utility import CLASSIFIERS, train_and_test
from pipeline.metrics import SYNTHETIC, release
from pipeline.plan import ACCURACY, CLASS_COUNTS
from privacy.audit.mechanism.laws import Check
from privacy.audit.mechanism.releases import audit_counts
from privacy.budget import Component, Reservation
from privacy.ledger import Head
from privacy.mechanisms import DiscreteLaplace

_CLASSES = 3
_DISTINCT = 8  # images; the holdout repeats them, so that every record has doubles


@dataclass(frozen=True)
class PaidCounts:
    """What ships, from a holdout's records to the counts that are released of them."""

    classifiers: Sequence[str]
    plan: Sequence[Component]  # what is charged for them
    _confusions: dict[bytes, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)

    def checks(self) -> list[Check]:
        """Audit every component of the plan."""
        return [
            check
            for component in self.plan
            if isinstance(component.mechanism, DiscreteLaplace)
            for check in audit_counts(
                component.name, partial(self.released, component.name), component.mechanism
            )
        ]

    def released(self, component: str, present: np.ndarray, scale: float) -> list[np.ndarray]:
        """Return the counts that come out of a component with noise of `scale`: a step each.

        `present` holds the ids of the records that are there, out of those up to the last.
        """
        results = {SYNTHETIC: {n: {"confusion": c} for n, c in self._tested(present).items()}}
        records = int(present.max()) + 1
        plan = tuple(
            Component(part.name, DiscreteLaplace(scale, part.mechanism.steps)) for part in self.plan
        )
        paid_by = Reservation(
            *("toy", "toy", "toy", records, "record", 1),
            void=False,
            spec=None,
            plan=plan,
            head=Head(1, ""),
        )
        found = release(results, paid_by)
        if component == CLASS_COUNTS:
            return [np.array([count.value for count in found.class_counts])]
        assert component == ACCURACY  # noqa: S101 - there is no other
        return [np.array([round(a.value * records)]) for a in found.classifiers.values()]

    def _tested(self, present: np.ndarray) -> dict[str, np.ndarray]:
        """Train the classifiers on other images and return their confusion matrices."""
        key = present.tobytes()
        if key not in self._confusions:
            images = np.random.default_rng(0).integers(0, 256, (_DISTINCT, 8, 8, 1), np.uint8)
            labels = np.arange(_DISTINCT) % _CLASSES
            tested = images[present % _DISTINCT], labels[present % _DISTINCT]
            training = np.repeat(images, 4, axis=0), np.repeat(labels, 4)
            self._confusions[key] = {
                name: np.array(
                    train_and_test(name, *training, *tested, classes=_CLASSES, epochs=2).confusion
                )
                for name in self.classifiers
            }
        return self._confusions[key]


def paid_counts(charged: Sequence[Component]) -> list[Check]:
    """Audit the counts that a plan pays for, if it pays for any."""
    plan = [part for part in charged if part.name in (ACCURACY, CLASS_COUNTS)]
    classifiers = next((part.mechanism.steps for part in plan if part.name == ACCURACY), 0)
    return PaidCounts(list(CLASSIFIERS)[:classifiers], plan).checks()
