"""What a report says, as frozen facts; whoever collects them vouches that they are released.

The page leaves the wall. Nothing measured against private images may be put in here: such an
evaluation is `None`, and so are private reference images. Fractions are in [0, 1], times in
seconds, images uint8 [N, H, W, C] with C of 1 or 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.metrics import PaidMetrics
from privacy.accounting.guarantee import Guarantee as OtherGuarantee
from privacy.errors import InvalidRequest


@dataclass(frozen=True)
class Run:
    """Which run it is. `void`: a seed was given, so nothing is promised."""

    name: str
    run_id: str
    status: str
    started: str
    finished: str | None
    rows: int
    void: bool


@dataclass(frozen=True)
class ClassImages:
    """Samples of one class, beside real images where those are public (else None)."""

    name: str
    synthetic: np.ndarray
    reference: np.ndarray | None = None

    def __post_init__(self) -> None:
        for images in (self.synthetic, self.reference):
            if images is None:
                continue
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
                raise InvalidRequest(
                    "the report expects images as uint8 [N, H, W, C] with C of 1 or 3, found "
                    f"{images.dtype} of shape {images.shape}"
                )


@dataclass(frozen=True)
class DatasetBudget:
    """The odometer of a data set over all its runs; RDP, which is what admits.

    `left` is what the filter would still admit: RDP adds by order, so it is not the plain
    difference of the others.
    """

    dataset: str
    epsilon: float
    delta: float
    spent: float
    reserved: float
    left: float


@dataclass(frozen=True)
class Spending:
    """What this run was charged, over all its attempts.

    Attributes:
        steps: charged steps at which the curve was computed, ascending.
        curve: ε under RDP after that many charged steps, of the same length.
        planned_steps: steps reserved before the run.
        planned_epsilon: ε under RDP of the whole reservation.
        epsilon_rdp: ε of what was charged, by the accountant that admits.
        epsilon_prv: the same by PRV (upper bound); None where it was not computed.
        epsilon_pld: the same by PLD; None where it was not computed.
        delta: the δ all of them hold at.
    """

    steps: tuple[int, ...]
    curve: tuple[float, ...]
    planned_steps: int
    planned_epsilon: float
    epsilon_rdp: float
    epsilon_prv: float | None
    epsilon_pld: float | None
    delta: float

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.curve) or list(self.steps) != sorted(set(self.steps)):
            raise InvalidRequest("a spending curve needs one ε for each of its ascending steps")


@dataclass(frozen=True)
class Guarantee:
    """Whom the promise protects, and by how much.

    Attributes:
        unit: the privacy unit in the singular, such as "image" or "patient".
        relation: the neighbouring relation, such as "add/remove with zero-out".
        records: N, which the relation lets be public.
        records_per_unit: k.
        others: what is promised under other relations, at the same δ: to one who may replace a
            record and, where k is above one, to a unit.
    """

    unit: str
    relation: str
    records: int
    records_per_unit: int = 1
    others: tuple[OtherGuarantee, ...] = ()


@dataclass(frozen=True)
class Component:
    """One mechanism of the run with its raw parameters, as the ledger holds them."""

    name: str
    kind: str
    parameters: Mapping[str, float | int | str]
    charged_steps: int


@dataclass(frozen=True)
class ClassifierResult:
    """A classifier trained on synthetic images and tested on real ones.

    `confusion[i, j]` counts real images of class i taken for class j. `ceiling` is the accuracy
    of the same classifier trained on real images, None where that may not be shown. The accuracy
    of a class without real images is None.
    """

    name: str
    accuracy: float
    ceiling: float | None
    class_accuracy: tuple[float | None, ...]
    confusion: np.ndarray


@dataclass(frozen=True)
class Score:
    """A number over sets of features, under the name that tells how it was made."""

    name: str
    value: float
    better: Literal["higher", "lower"]
    meaning: str


@dataclass(frozen=True)
class Evaluation:
    """Released measurements; `reference` says against which public images."""

    reference: str
    classifiers: tuple[ClassifierResult, ...]
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Check:
    """One thing the audit recomputed or compared."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Audit:
    """The audit's verdict and what it rests on."""

    verdict: Literal["passed", "failed", "not run"]
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """From what, by what and where the images were made."""

    spec_yaml: str
    ledger_id: str
    ledger_head: str
    manifest_sha256: str | None
    versions: Mapping[str, str]
    hardware: Mapping[str, str]
    stages: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ReportFacts:
    """Everything on the page. `evaluation` is None when its reference is private or it was not run.

    `withheld` is then the sentence shown in its place, and `paid` what was released by a charged
    mechanism instead, if anything.
    """

    run: Run
    classes: tuple[ClassImages, ...]
    budget: DatasetBudget
    spending: Spending
    guarantee: Guarantee
    components: tuple[Component, ...]
    evaluation: Evaluation | None
    audit: Audit
    provenance: Provenance
    paid: PaidMetrics | None = None
    withheld: str = (
        "The reference images are private, so nothing measured against them leaves the run "
        "unless it is paid for. The figures stay in its internal folder."
    )

    def __post_init__(self) -> None:
        count = len(self.classes)
        for result in self.evaluation.classifiers if self.evaluation else ():
            if len(result.class_accuracy) != count or result.confusion.shape != (count, count):
                raise InvalidRequest(
                    f"the report shows {count} classes, but the results of {result.name} are for "
                    f"{len(result.class_accuracy)}"
                )
