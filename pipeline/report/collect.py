"""Collects the facts of a report from a run's folder and the ledger: released things only."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pipeline.audit import Audit as RunAudit
from pipeline.metrics import CEILING, FEATURES, METRICS, SYNTHETIC, paid_metrics
from pipeline.privacy_statement import charged_mechanisms, guarantees
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
from pipeline.runs.directory import RunDirectory
from pipeline.sources import ImageSet
from pipeline.spec import Spec
from privacy.accounting import accountant
from privacy.accounting.base import round_up
from privacy.accounting.bounds import epsilon_bounds
from privacy.budget import RELATION, Budget, Reservation
from privacy.ledger import Kind
from privacy.mechanisms import Mechanism
from synth.data.manifest import MANIFEST, manifest_sha256
from synth.data.shards import read_shards

_SHOWN = 12  # images of a class
_PACKAGES = ("umbra-synth", "torch", "numpy", "dp-accounting", "prv-accountant", "opacus", "ray")
_SCORES: dict[str, tuple[Literal["higher", "lower"], str]] = {
    "precision": ("higher", "share of synthetic images that look real"),
    "recall": ("higher", "share of real images that the synthetic ones cover"),
    "density": ("higher", "how many real neighbourhoods a synthetic image lies in"),
    "coverage": ("higher", "share of real neighbourhoods that hold a synthetic image"),
}


def collect(run: RunDirectory, budget: Budget, audit: RunAudit) -> ReportFacts:
    """Return the facts of a run whose images are made.

    Args:
        run: the run's folder.
        budget: the ledger's budgets.
        audit: the audit of this run.
    """
    spec, state = run.spec(), run.state()
    assert state.reservation_id is not None  # noqa: S101 - a run with images has reserved
    reservation = budget.reservation(state.reservation_id)
    return ReportFacts(
        run=Run(
            name=spec.name,
            run_id=run.run_id,
            status="done" if state.is_done("synthesize") else state.status,
            started=f"{state.created:%Y-%m-%d %H:%M} UTC",
            finished=f"{state.updated:%Y-%m-%d %H:%M} UTC",
            rows=spec.synthesize.total,
            void=reservation.void,
        ),
        classes=_classes(run, spec),
        budget=_budget(budget, reservation),
        spending=_spending(budget, reservation),
        guarantee=_guarantee(budget, reservation),
        components=_components(budget, reservation),
        evaluation=_evaluation(run, spec),
        paid=paid_metrics(run),
        audit=_audit(audit),
        provenance=_provenance(run, budget),
    )


def _classes(run: RunDirectory, spec: Spec) -> tuple[ClassImages, ...]:
    parts = list(read_shards(run.release))
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    reference = _public_reference(spec)
    return tuple(
        ClassImages(
            name=name,
            synthetic=images[labels == label][:_SHOWN],
            reference=None if reference is None else _shown(reference, label),
        )
        for label, name in enumerate(spec.data.classes)
    )


def _shown(images: ImageSet, label: int) -> np.ndarray:
    return images.images[images.labels == label][:_SHOWN]


def _public_reference(spec: Spec) -> ImageSet | None:
    holdout = spec.data.holdout
    if holdout is None or not holdout.public:
        return None
    return holdout.source.load(spec.data.size, spec.data.channels, spec.data.classes)


def _budget(budget: Budget, reservation: Reservation) -> DatasetBudget:
    meter = budget.odometer(reservation.dataset)
    return DatasetBudget(
        dataset=meter.name,
        epsilon=meter.epsilon,
        delta=meter.delta,
        spent=meter.spent,
        reserved=meter.reserved,
        left=meter.left,
    )


def _spending(budget: Budget, reservation: Reservation) -> Spending:
    delta = budget.odometer(reservation.dataset).delta
    mechanisms = list(charged_mechanisms(budget, reservation).values())
    bounds = epsilon_bounds(mechanisms, delta)
    steps, curve = _curve(budget, reservation, delta)
    plan = [part.mechanism for part in reservation.plan]
    rdp = accountant("rdp")
    return Spending(
        steps=tuple(steps),
        curve=tuple(curve),
        planned_steps=sum(mechanism.steps for mechanism in plan),
        planned_epsilon=round_up(rdp.epsilon(plan, delta)),
        epsilon_rdp=bounds.rdp,
        epsilon_prv=bounds.prv,
        epsilon_pld=bounds.pld,
        delta=delta,
    )


def _curve(budget: Budget, reservation: Reservation, delta: float) -> tuple[list[int], list[float]]:
    """Return ε by RDP after each charge of the reservation, over its charged steps."""
    rdp = accountant("rdp")
    steps, curve = [0], [0.0]
    for row in budget.ledger.rows(kind=Kind.CHARGE, reservation=reservation.id):
        charged = row.content["charged"]
        so_far: list[Mechanism] = [
            part.mechanism.with_steps(charged[part.name])
            for part in reservation.plan
            if charged[part.name]
        ]
        steps.append(sum(charged.values()))
        curve.append(round_up(rdp.epsilon(so_far, delta)))
    return steps, curve


def _guarantee(budget: Budget, reservation: Reservation) -> Guarantee:
    k = reservation.records_per_unit
    delta = budget.odometer(reservation.dataset).delta
    charged = charged_mechanisms(budget, reservation).values()
    return Guarantee(
        unit=reservation.unit,
        relation=RELATION,
        records=reservation.records,
        records_per_unit=k,
        others=tuple(guarantees(charged, delta, k)),
    )


def _components(budget: Budget, reservation: Reservation) -> tuple[Component, ...]:
    charged = budget.charged_steps(reservation.id)
    components = []
    for part in reservation.plan:
        record = part.mechanism.to_record()
        kind = str(record.pop("type"))
        components.append(Component(part.name, kind, record, charged[part.name]))
    return tuple(components)


def _evaluation(run: RunDirectory, spec: Spec) -> Evaluation | None:
    path = run.release / METRICS
    if not path.exists():
        return None
    results = json.loads(path.read_bytes())
    classifiers = tuple(
        _classifier(name, result, results[CEILING].get(name))
        for name, result in results[SYNTHETIC].items()
    )
    return Evaluation(
        reference=f"the holdout of {spec.data.name}",
        classifiers=classifiers,
        scores=_scores(results[FEATURES]),
    )


def _classifier(
    name: str, result: dict[str, Any], ceiling: dict[str, Any] | None
) -> ClassifierResult:
    return ClassifierResult(
        name=name,
        accuracy=result["accuracy"],
        ceiling=ceiling["accuracy"] if ceiling else None,
        class_accuracy=tuple(result["per_class"]),
        confusion=np.array(result["confusion"]),
    )


def _scores(features: dict[str, Any]) -> tuple[Score, ...]:
    distance, balls = features["frechet"], features["precision_recall"]
    first = Score(
        distance["metric"], distance["distance"], "lower", "distance of the two sets of features"
    )
    rest = (Score(name, balls[name], better, told) for name, (better, told) in _SCORES.items())
    return (first, *rest)


def _audit(audit: RunAudit) -> Audit:
    ledger = audit.ledger
    broken = [str(finding) for finding in ledger.findings]
    checks = [
        Check(
            "ledger chain and rules",
            not broken,
            "; ".join(broken) or f"{ledger.rows} rows replayed, every hash and rule holds",
        ),
        Check(
            "released files",
            not audit.files,
            "; ".join(audit.files) or "every file has the hash that the manifest states",
        ),
    ]
    checks += [
        Check(
            f"ε of {dataset.name}",
            dataset.committed.rdp <= dataset.epsilon + 1e-4,
            f"{dataset.committed.rdp:g} by independent code, declared {dataset.epsilon:g}",
        )
        for dataset in ledger.datasets
    ]
    return Audit("passed" if audit.ok else "failed", tuple(checks))


def _provenance(run: RunDirectory, budget: Budget) -> Provenance:
    state = run.state()
    sealed = (run.release / MANIFEST).exists()
    return Provenance(
        spec_yaml=run.spec_path.read_text(),
        ledger_id=budget.ledger.ledger_id,
        ledger_head=str(budget.ledger.head()),
        manifest_sha256=manifest_sha256(run.release) if sealed else None,
        versions={"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}},
        hardware=_hardware(),
        stages=tuple((stage.name, stage.seconds) for stage in state.stages),
    )


def _hardware() -> dict[str, str]:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor()
    facts = {"processor": f"{name}, {os.cpu_count()} cores", "system": platform.system()}
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts
