"""Plan a run: what it would charge and cost.

`plan` reads nothing but the spec: no data, no budget, no UMBRA_HOME. The run executes the same
Plan, so what is shown is what is reserved, charged and trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.plan.cost import Cost, estimate
from pipeline.spec import Spec
from privacy.accounting.base import round_up
from privacy.accounting.bounds import EpsilonBounds, epsilon_bounds
from privacy.ledger.records import Component
from privacy.mechanisms import DiscreteLaplace
from synth.methods import method_class
from synth.methods.base import Method, PrivacyTarget, PublicFacts, WorkerResources

ACCURACY, CLASS_COUNTS = "accuracy", "class-counts"


@dataclass(frozen=True)
class Plan:
    """The private part of a run in numbers, and its cost.

    Attributes:
        name: the run's name.
        dataset: the budget it draws on.
        records: N, declared.
        target_epsilon: ε that was asked for.
        delta: δ.
        calibration: the accountant that found σ, "rdp" or "prv".
        method: how a generator is fitted.
        numbers: the method's own, such as steps and noise multiplier.
        components: what the method charges, in order.
        holdout_components: what is charged to the holdout's part for figures against it:
            "accuracy" and "class-counts"; empty where none are released by a mechanism.
        epsilon: upper bounds on ε of all components together.
        void: whether a seed makes the guarantee void.
        cost: operations, memory and time.
        notes: what a reader has to know before submitting.
    """

    name: str
    dataset: str
    records: int
    target_epsilon: float
    delta: float
    calibration: str
    method: str
    numbers: Mapping[str, int | float]
    components: tuple[Component, ...]
    holdout_components: tuple[Component, ...]
    epsilon: EpsilonBounds
    void: bool
    cost: Cost
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan for JSON: mechanisms as raw parameters, ε rounded up."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del plain["numbers"]
        return {
            **plain,
            **self.numbers,
            "components": [component.to_record() for component in self.components],
            "holdout_components": [part.to_record() for part in self.holdout_components],
            "admission": "rdp",
            "epsilon": self.epsilon.to_dict(),
            "cost": self.cost.to_dict(),
            "notes": list(self.notes),
        }

    def costs(self) -> dict[str, float]:
        """Return the numbers a tracker keeps; a bound that could not be stated is left out."""
        return {
            **{f"epsilon_{name}": bound for name, bound in self.epsilon.stated().items()},
            # The last component's steps are the method's own number of that name.
            **{f"{c.name}_steps": c.mechanism.steps for c in self.components[:-1]},
            **self.numbers,
            "delta": self.delta,
            "views": self.cost.views,
            "parameters": self.cost.parameters,
        }


def build_method(spec: Spec) -> Method:
    """Return the spec's method with its settings."""
    resources, cls = spec.resources, method_class(spec.method)
    return cls(
        PublicFacts(spec.data.records, spec.data.size, spec.data.channels, len(spec.data.classes)),
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

    Args:
        spec: what is asked for.
        trial: whether to time the network for a moment, to estimate the hours.

    Raises:
        InvalidRequest: no noise meets the request (the warm-up alone spends ε, say).
    """
    privacy, method = spec.privacy, build_method(spec)
    components = training_components(spec)
    epsilon = epsilon_bounds([component.mechanism for component in components], privacy.delta)
    return Plan(
        name=spec.name,
        dataset=spec.data.name,
        records=spec.data.records,
        target_epsilon=privacy.epsilon,
        delta=privacy.delta,
        calibration=privacy.calibration,
        method=method.name,
        numbers=method.public_numbers(components),
        components=components,
        holdout_components=holdout_components(spec),
        epsilon=epsilon,
        void=privacy.seed is not None,
        cost=estimate(spec, method.workload(components), trial=trial),
        notes=_notes(spec, epsilon),
    )


def training_components(spec: Spec) -> tuple[Component, ...]:
    """Return what the method charges for the spec's (ε, δ), without the cost in time and memory.

    Raises:
        InvalidRequest: no noise meets the request.
    """
    privacy = spec.privacy
    target = PrivacyTarget(privacy.epsilon, privacy.delta, privacy.calibration)
    return build_method(spec).components(target)


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


def _notes(spec: Spec, epsilon: EpsilonBounds) -> tuple[str, ...]:
    notes = []
    privacy = spec.privacy
    if privacy.calibration != "rdp":
        notes.append(
            f"σ was calibrated under {privacy.calibration.upper()}, but the ledger admits by "
            f"RDP: the budget of {spec.data.name} needs room for ε = {epsilon.rdp}."
        )
    if spec.evaluate is not None and spec.evaluate.release is not None:
        notes.append(
            f"figures against the private holdout are released for ε = "
            f"{round_up(spec.evaluate.release_epsilon)} of the holdout's own part of the budget of "
            f"{spec.data.name}; its images must not be among the training images."
        )
    if privacy.seed is not None:
        notes.append(
            "privacy.seed is set: the run is reproducible and VOID of privacy; it is still "
            "charged, and export refuses it without an explicit flag."
        )
    if privacy.records_per_unit > 1:
        notes.append(
            f"ε and δ hold for one record; a {privacy.unit} may have "
            f"{privacy.records_per_unit}, and its converted guarantee is weaker: the ledger "
            "reports it."
        )
    return tuple(notes)
