"""The report's page: what it shows of a run, and the templates that show it.

The page may be shared, so only released values may enter it.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pipeline import metrics
from pipeline.audit.ledger import Audit, audit_run
from pipeline.progress import duration
from pipeline.report import figures
from pipeline.runs import dataset_identity
from pipeline.runs.directory import RunDirectory, RunState
from pipeline.runs.ledger_access import (
    TrainingSteps,
    charged_mechanisms,
    guarantees,
    training_steps,
)
from pipeline.spec import Spec
from privacy.accounting import EpsilonBounds, accountant, base, epsilon_bounds
from privacy.accounting.guarantee import Guarantee
from privacy.accounting.tradeoff import TradeOff, trade_offs
from privacy.budget import Budget
from privacy.errors import IntegrityBroken
from privacy.ledger import Kind
from privacy.ledger.records import RELATION, Odometer, Reservation
from privacy.records import LabelledRecords
from synth.data import manifest, shards
from synth.storage import write_bytes

PAGE = "report.html"
# Images of a class.
_SHOWN = 12
_PACKAGES = ("umbra-synth", "torch", "numpy", "dp-accounting", "prv-accountant", "opacus", "ray")
# ε is stated in four decimals.
_ROUNDING = 1e-4
_MEANINGS = {
    "precision": ("higher", "share of synthetic images that look real"),
    "recall": ("higher", "share of real images that the synthetic ones cover"),
    "density": ("higher", "how many real neighbourhoods a synthetic image lies in"),
    "coverage": ("higher", "share of real neighbourhoods that hold a synthetic image"),
}
_FRECHET = ("lower", "distance of the two sets of features")


@dataclass(frozen=True)
class ClassSamples:
    """Synthetic images of a class, uint8 [N, H, W, C], beside real ones where these are public."""

    name: str
    synthetic: np.ndarray
    reference: np.ndarray | None = None


@dataclass(frozen=True)
class Provenance:
    """What the images were made from, by what software and on what hardware."""

    spec_yaml: str
    ledger_id: str
    ledger_head: str
    manifest_sha256: str | None
    versions: Mapping[str, str]
    hardware: Mapping[str, str]


@dataclass(frozen=True)
class ReportView:
    """Everything on the page."""

    spec: Spec
    state: RunState
    #: Pays for the training.
    reservation: Reservation
    #: Charged steps by component.
    charged: Mapping[str, int]
    #: How many of them the weights have taken.
    steps: TrainingSteps | None
    #: ε of what was charged.
    bounds: EpsilonBounds
    #: (steps, ε by RDP) after each charge, from (0, 0).
    charges: tuple[tuple[int, float], ...]
    #: ε by RDP of the whole reservation.
    planned_epsilon: float
    #: The same charges under other neighbouring relations.
    guarantees: tuple[Guarantee, ...]
    #: What an attacker could do at most to a record and to a unit of several.
    attack: tuple[TradeOff, ...]
    #: The budget of the data set over all its runs.
    odometer: Odometer
    samples: tuple[ClassSamples, ...]
    #: Measured against public images; empty where nothing was.
    results: Mapping[str, Any]
    #: Figures against a private holdout, by a charged mechanism.
    paid: metrics.PaidMetrics | None
    audit: Audit
    provenance: Provenance

    def __post_init__(self) -> None:
        for name, result in self.results.get(metrics.SYNTHETIC, {}).items():
            if len(result["per_class"]) != len(self.samples):
                raise IntegrityBroken(
                    f"the metrics of {name} are for {len(result['per_class'])} classes, expected "
                    f"{len(self.samples)}: they are damaged or of another run"
                )

    @property
    def status(self) -> str:
        """The status shown; the page is written while its own stage still runs."""
        return "done" if self.state.stage == "report" else self.state.status

    @property
    def best(self) -> str | None:
        """The classifier with the highest accuracy."""
        found = self.results.get(metrics.SYNTHETIC, {})
        return max(found, key=lambda name: found[name]["accuracy"], default=None)

    @property
    def scores(self) -> list[tuple[str, float, str, str]]:
        """The metrics on features: name, value, whether higher or lower is better, meaning."""
        found = metrics.likeness(dict(self.results)) if metrics.FEATURES in self.results else {}
        return [(name, value, *_MEANINGS.get(name, _FRECHET)) for name, value in found.items()]

    @property
    def checks(self) -> list[tuple[str, bool, str]]:
        """What the audit recomputed or compared: its name, whether it holds, and details."""
        ledger = self.audit.ledger
        replayed = f"{ledger.rows} rows replayed, every hash and rule holds"
        files = "; ".join(self.audit.files)
        sound = "every file has the hash that the manifest states"
        return [
            # No page is written of a ledger that fails.
            ("ledger chain and rules", True, replayed),
            ("released files", not files, files or sound),
            *(
                (
                    f"ε of {dataset.name}",
                    dataset.committed.rdp <= dataset.epsilon + _ROUNDING,
                    f"{dataset.committed.rdp:g} by independent code, declared {dataset.epsilon:g}",
                )
                for dataset in ledger.datasets
            ),
        ]


def report_view(run: RunDirectory, budget: Budget, audit: Audit) -> ReportView:
    """Gather what is shown of a run whose images are made.

    Raises:
        IntegrityBroken: the run's spec, state, images or metrics are damaged.
    """
    spec, state = run.evaluated_spec(), run.state()
    assert state.reservation_id is not None  # noqa: S101 - a run with images has reserved
    reservation = budget.reservation(state.reservation_id)
    odometer = budget.odometer(reservation.dataset)
    delta = odometer.delta
    charged = list(charged_mechanisms(budget, reservation).values())
    plan = [part.mechanism for part in reservation.plan]
    return ReportView(
        spec=spec,
        state=state,
        reservation=reservation,
        charged=budget.charged_steps(reservation.id),
        steps=training_steps(run, budget),
        bounds=epsilon_bounds(charged, delta) if charged else EpsilonBounds(0.0),
        charges=_charges(budget, reservation, delta),
        planned_epsilon=base.round_up(accountant("rdp").epsilon(plan, delta)),
        guarantees=tuple(guarantees(charged, delta, reservation.records_per_unit)),
        attack=trade_offs([charged], delta, reservation.records_per_unit),
        odometer=odometer,
        samples=_samples(run, spec, budget.shown(reservation.id).holdout),
        results=metrics.released(run, budget),
        paid=metrics.paid_metrics(run),
        audit=audit,
        provenance=_provenance(run, budget),
    )


def _charges(
    budget: Budget, reservation: Reservation, delta: float
) -> tuple[tuple[int, float], ...]:
    """Return (charged steps, ε by RDP) after each charge of the reservation."""
    charges = [(0, 0.0)]
    for row in budget.ledger.rows(kind=Kind.CHARGE, reservation=reservation.id):
        charged = row.content["charged"]
        so_far = [
            part.mechanism.with_steps(charged[part.name])
            for part in reservation.plan
            if charged[part.name]
        ]
        epsilon = base.round_up(accountant("rdp").epsilon(so_far, delta))
        charges.append((sum(charged.values()), epsilon))
    return tuple(charges)


def _samples(run: RunDirectory, spec: Spec, holdout: bool) -> tuple[ClassSamples, ...]:
    synthetic = LabelledRecords.concatenate(shards.read_shards(run.release))
    data, reference = spec.data, None
    if holdout:
        # The very images that the ledger knows: the file may hold others by now.
        known = dataset_identity.DatasetIdentity.of(run, data.name, dataset_identity.HOLDOUT)
        reference = dataset_identity.load_partition(data, dataset_identity.HOLDOUT, known)

    def first(records: LabelledRecords, label: int) -> np.ndarray:
        return records.values[records.labels == label][:_SHOWN]

    return tuple(
        ClassSamples(name, first(synthetic, i), None if reference is None else first(reference, i))
        for i, name in enumerate(data.classes)
    )


def _provenance(run: RunDirectory, budget: Budget) -> Provenance:
    sealed = (run.release / manifest.MANIFEST).exists()
    return Provenance(
        spec_yaml=run.spec_path.read_text(encoding="utf-8"),
        ledger_id=budget.ledger.ledger_id,
        ledger_head=str(budget.ledger.head()),
        manifest_sha256=manifest.manifest_sha256(run.release) if sealed else None,
        versions={"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}},
        hardware=_hardware(),
    )


def _hardware() -> dict[str, str]:
    import torch

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor()
    facts = {"processor": f"{name}, {os.cpu_count()} cores", "system": platform.system()}
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts


def write_report(run: RunDirectory, budget: Budget) -> None:
    """Audit the run and write its page. Raises IntegrityBroken where the ledger fails the audit."""
    audit = audit_run(budget.ledger, run)
    if not audit.ledger.ok:
        raise IntegrityBroken(
            f"The ledger fails its audit ({audit.ledger.findings[0]}), so that no figure of it "
            "holds and no report is written. Run `umbra audit` for all findings."
        )
    view = report_view(run, budget, audit)
    write_bytes(run.release / PAGE, build_page(view).encode())


def build_page(view: ReportView) -> str:
    """Return one self-contained HTML page, which loads nothing; every text in it is escaped."""
    names = [samples.name for samples in view.samples]
    template = _environment().get_template("report.html.j2")
    return template.render(
        view=view,
        beside=any(samples.reference is not None for samples in view.samples),
        # Room for the longest class name, within reason; longer ones break into lines.
        name_width=min(12, 2 + max(map(len, names), default=0)),
        class_names=names,
        curve=figures.epsilon_curve(view.charges, view.bounds),
        power=figures.power_curve(view.attack),
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = ("epsilon", "left", "power", "percent", "number")
    environment.filters |= {name: getattr(figures, name) for name in formats}
    environment.filters["duration"] = duration
    drawn = ("strip", "confusion_map", "share")
    environment.globals |= {name: getattr(figures, name) for name in drawn}
    environment.globals["relation"] = RELATION
    return environment
