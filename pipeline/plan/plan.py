"""Plan a run: what it would charge and cost, and whether its budget has room for it.

`plan` reads nothing but the spec: no data, no budget, no UMBRA_HOME. The run executes the same
Plan, so what is shown is what is reserved, charged and trained.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.home import Home
from pipeline.plan.cost import Cost, estimate
from pipeline.runs.dataset_identity import HOLDOUT, TRAIN
from pipeline.spec import Spec
from privacy.accounting import EpsilonBounds, epsilon_bounds
from privacy.accounting.base import round_up
from privacy.budget import Budget, Quote
from privacy.errors import BudgetRefused, NoLedger
from privacy.ledger import Ledger
from privacy.ledger.records import Component
from privacy.mechanisms import DiscreteLaplace
from synth.methods import method_class
from synth.methods.base import Method, PublicFacts, WorkerResources

ACCURACY, CLASS_COUNTS = "accuracy", "class-counts"


@dataclass(frozen=True)
class Plan:
    """The private part of a run in numbers, and its cost."""

    spec: Spec
    numbers: Mapping[str, int | float]  # the method's own, such as steps and noise multiplier
    components: tuple[Component, ...]  # what the method charges, in order
    holdout_components: tuple[Component, ...]  # charged to the holdout's part for figures on it
    epsilon: EpsilonBounds  # of all components together
    cost: Cost
    notes: tuple[str, ...]  # what a reader has to know before submitting

    @property
    def void(self) -> bool:
        """Whether a seed makes the guarantee void."""
        return self.spec.privacy.seed is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan for JSON: mechanisms as raw parameters, ε rounded up."""
        spec = self.spec
        return {
            "name": spec.name,
            "dataset": spec.data.name,
            "records": spec.data.records,
            "target_epsilon": spec.privacy.epsilon,
            "delta": spec.privacy.delta,
            "calibration": spec.privacy.calibration,
            "method": spec.method,
            **self.numbers,
            "components": [part.to_record() for part in self.components],
            "holdout_components": [part.to_record() for part in self.holdout_components],
            "admission": "rdp",
            "epsilon": self.epsilon.to_dict(),
            "void": self.void,
            "cost": asdict(self.cost),
            "notes": list(self.notes),
        }

    def costs(self) -> dict[str, float]:
        """Return the numbers a tracker keeps; a bound that could not be stated is left out."""
        return {
            **{f"epsilon_{name}": bound for name, bound in self.epsilon.stated().items()},
            # The last component's steps are the method's own number of that name.
            **{f"{part.name}_steps": part.mechanism.steps for part in self.components[:-1]},
            **self.numbers,
            "delta": self.spec.privacy.delta,
            "views": self.cost.views,
            "parameters": self.cost.parameters,
        }


def build_method(spec: Spec) -> Method:
    """Return the spec's method with its settings."""
    data, resources, cls = spec.data, spec.resources, method_class(spec.method)
    return cls(
        data.records,
        PublicFacts(data.size, data.channels, len(data.classes)),
        spec.privacy.clip_norm,
        WorkerResources(
            "cuda" if resources.gpus_per_worker > 0 else "cpu",
            resources.memory_gib_per_worker,
            1 if resources.workers == "auto" else resources.workers,
        ),
        **{name: getattr(spec, name) for name in cls.sections},
    )


def plan(spec: Spec, *, trial: bool = True) -> Plan:
    """Calibrate the method's noise to the spec's (ε, δ) and add up what the run would cost.

    With a trial the network is timed for a moment, to estimate the hours.

    Raises:
        InvalidRequest: no noise meets the request (the warm-up alone spends ε, say).
    """
    method, components = build_method(spec), training_components(spec)
    mechanisms = [component.mechanism for component in components]
    epsilon, extent = epsilon_bounds(mechanisms, spec.privacy.delta), method.extent(components)
    return Plan(
        spec=spec,
        numbers=extent.numbers,
        components=components,
        holdout_components=holdout_components(spec),
        epsilon=epsilon,
        cost=estimate(spec, method, extent.views, trial=trial),
        notes=tuple(_notes(spec, epsilon)),
    )


def training_components(spec: Spec) -> tuple[Component, ...]:
    """Return what the method charges for the spec's (ε, δ).

    Raises:
        InvalidRequest: no noise meets the request.
    """
    privacy = spec.privacy
    method = build_method(spec)
    return method.components(privacy.epsilon, privacy.delta, privacy.calibration)


def holdout_components(spec: Spec) -> tuple[Component, ...]:
    """Return what figures against a private holdout are charged; empty where none are released."""
    # Every query has an equal share of ε; a count changes by at most one with a record.
    evaluate = spec.evaluate
    if evaluate is None or evaluate.release is None:
        return ()
    scale = evaluate.releases / evaluate.release_epsilon
    counts = (Component(CLASS_COUNTS, DiscreteLaplace(scale)),)
    accuracy = Component(ACCURACY, DiscreteLaplace(scale, len(evaluate.classifiers)))
    return (accuracy, *(counts if evaluate.release_class_counts else ()))


def budget_quotes(plan: Plan, home: Home) -> dict[str, Quote]:
    """Return the quote of every part of the data set that the plan draws on; changes nothing.

    Empty where the data set has no budget yet, or there is no ledger at all.

    Raises:
        LedgerUnavailable: there is a ledger and it cannot be reached.
        IntegrityBroken: it is damaged.
    """
    asked = {TRAIN: plan.components, HOLDOUT: plan.holdout_components}
    try:
        budget = Budget(Ledger.open(home.ledger_url))
        name = plan.spec.data.name
        return {part: budget.quote(name, paid, part) for part, paid in asked.items() if paid}
    except (NoLedger, BudgetRefused):
        return {}


def _notes(spec: Spec, epsilon: EpsilonBounds) -> Iterator[str]:
    privacy, evaluate, name = spec.privacy, spec.evaluate, spec.data.name
    if privacy.calibration != "rdp":
        yield (
            f"σ was calibrated under {privacy.calibration.upper()}, but the ledger admits by RDP: "
            f"the budget of {name} needs room for ε = {epsilon.rdp}."
        )
    if evaluate is not None and evaluate.release is not None:
        yield (
            f"figures against the private holdout are released for ε = "
            f"{round_up(evaluate.release_epsilon)} of the holdout's own part of the budget of "
            f"{name}; its images must not be among the training images."
        )
    if privacy.seed is not None:
        yield (
            "privacy.seed is set: the run is reproducible and VOID of privacy; it is still "
            "charged, and export refuses it without an explicit flag."
        )
    if privacy.records_per_unit > 1:
        yield (
            f"ε and δ hold for one record; a {privacy.unit} may have {privacy.records_per_unit}, "
            "and its converted guarantee is weaker: the ledger reports it."
        )
