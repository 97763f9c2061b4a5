"""What a run would do and cost, before any of it is done.

`plan` reads nothing but the spec: no data, no budget, no UMBRA_HOME. The run itself
executes the very same Plan, so what was shown is what is reserved, charged and trained.
"""

from dataclasses import dataclass
from typing import Any

from pipeline.plan.cost import Cost, estimate
from pipeline.spec import Spec
from privacy.accounting import accountant
from privacy.accounting.base import round_up
from privacy.accounting.bounds import EpsilonBounds, epsilon_bounds
from privacy.accounting.calibrate import noise_multiplier
from privacy.budget import Component
from privacy.errors import InvalidRequest
from privacy.mechanisms import DiscreteLaplace, Gaussian, Mechanism, SubsampledGaussian

WARMUP, DP_SGD = "warmup", "dp-sgd"
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
        sampling_probability: q, of every record in every step.
        steps: T.
        expected_batch: q·N, the fixed number that sums are divided by.
        views: K, noised copies of a record in a step.
        noise_multiplier: σ_DP of DP-SGD.
        clip_norm: C.
        components: what is charged, in order: "warmup" where there is one, then "dp-sgd".
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
    sampling_probability: float
    steps: int
    expected_batch: float
    views: int
    noise_multiplier: float
    clip_norm: float
    components: tuple[Component, ...]
    holdout_components: tuple[Component, ...]
    epsilon: EpsilonBounds
    void: bool
    cost: Cost
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: mechanisms as raw parameters, ε rounded up."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **plain,
            "components": [component.to_record() for component in self.components],
            "holdout_components": [part.to_record() for part in self.holdout_components],
            "admission": "rdp",
            "epsilon": self.epsilon.to_dict(),
            "cost": self.cost.to_dict(),
            "notes": list(self.notes),
        }

    def costs(self) -> dict[str, float]:
        """The numbers a tracker keeps; a bound that could not be stated is left out."""
        numbers = {f"epsilon_{name}": bound for name, bound in self.epsilon.stated().items()}
        warmup = {f"{c.name}_steps": c.mechanism.steps for c in self.components if c.name == WARMUP}
        return {
            **numbers,
            **warmup,
            "delta": self.delta,
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": self.clip_norm,
            "sampling_probability": self.sampling_probability,
            "expected_batch": self.expected_batch,
            "steps": self.steps,
            "views": self.cost.views,
            "parameters": self.cost.parameters,
        }


def plan(spec: Spec, *, trial: bool = True) -> Plan:
    """Calibrates σ for the spec's (ε, δ) and adds up what the run would cost.

    Args:
        spec: what is asked for.
        trial: whether to time the network for a moment, to estimate the hours.

    Raises:
        InvalidRequest: no noise meets the request (the warm-up alone spends ε, say).
    """
    schedule = spec.train.schedule(spec.data.records)
    sigma, components = _components(spec)
    mechanisms = [component.mechanism for component in components]
    epsilon = epsilon_bounds(mechanisms, spec.privacy.delta)
    expected_batch = schedule.sampling_probability * spec.data.records
    return Plan(
        name=spec.name,
        dataset=spec.data.name,
        records=spec.data.records,
        target_epsilon=spec.privacy.epsilon,
        delta=spec.privacy.delta,
        calibration=spec.privacy.calibration,
        sampling_probability=schedule.sampling_probability,
        steps=schedule.steps,
        expected_batch=expected_batch,
        views=spec.train.views,
        noise_multiplier=sigma,
        clip_norm=spec.privacy.clip_norm,
        components=components,
        holdout_components=_holdout_components(spec),
        epsilon=epsilon,
        void=spec.privacy.seed is not None,
        cost=estimate(spec, schedule.steps * expected_batch * spec.train.views, trial=trial),
        notes=_notes(spec, epsilon),
    )


def _components(spec: Spec) -> tuple[float, tuple[Component, ...]]:
    """σ of DP-SGD and everything that is charged, so that all together meet ε at δ."""
    privacy, warmup = spec.privacy, spec.train.warmup
    schedule = spec.train.schedule(spec.data.records)
    fixed: tuple[Component, ...] = ()
    if warmup is not None:
        fixed = (Component(WARMUP, Gaussian(warmup.noise_multiplier)),)
        _refuse_costly_warmup(spec, fixed[0].mechanism)
    sigma = noise_multiplier(
        privacy.epsilon,
        privacy.delta,
        schedule.sampling_probability,
        schedule.steps,
        fixed=[component.mechanism for component in fixed],
        accountant=privacy.calibration,
    )
    sgd = SubsampledGaussian(schedule.sampling_probability, sigma, schedule.steps)
    return sigma, (*fixed, Component(DP_SGD, sgd))


def _holdout_components(spec: Spec) -> tuple[Component, ...]:
    """Every query has an equal share of ε; a count changes by at most one with a record."""
    evaluate = spec.evaluate
    if evaluate is None or evaluate.release is None:
        return ()
    scale = evaluate.releases / evaluate.release_epsilon
    counts = (Component(CLASS_COUNTS, DiscreteLaplace(scale)),)
    accuracy = Component(ACCURACY, DiscreteLaplace(scale, len(evaluate.classifiers)))
    return (accuracy, *(counts if evaluate.release_class_counts else ()))


def _refuse_costly_warmup(spec: Spec, release: Mechanism) -> None:
    spent = accountant(spec.privacy.calibration).epsilon([release], spec.privacy.delta)
    if spent >= spec.privacy.epsilon:
        raise InvalidRequest(
            f"the warm-up alone spends ε = {round_up(spent)} at δ = {spec.privacy.delta:g} "
            f"({spec.privacy.calibration}), expected less than privacy.epsilon = "
            f"{spec.privacy.epsilon:g}. Raise train.warmup.noise_multiplier (now "
            f"{release.noise_multiplier:g}) or leave the warm-up out."
        )


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
