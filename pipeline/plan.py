"""Plan a run: what it would charge and cost, and whether its budget has room for it.

`plan` reads nothing but the spec: no data, no budget, no UMBRA_HOME. The run executes the same
Plan, so what is shown is what is reserved, charged and trained. Of the cost, everything but the
parameter count is an estimate; a trial times the network of the spec, untrained, on zeros.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.home import Home
from pipeline.runs.dataset_identity import HOLDOUT, TRAIN
from pipeline.runs.ledger_access import read_budget
from pipeline.spec import Spec
from privacy.accounting import EpsilonBounds, epsilon_bounds
from privacy.accounting.base import round_up
from privacy.accounting.tradeoff import TradeOff, trade_offs
from privacy.budget import Quote
from privacy.errors import BudgetRefused, NoLedger
from privacy.ledger.records import Component
from privacy.mechanisms import DiscreteLaplace
from synth.methods import method_class
from synth.methods.base import Method, PublicFacts, WorkerResources
from synth.samplers import DIRECT

ACCURACY, CLASS_COUNTS = "accuracy", "class-counts"

# Weights 4, EMA 4, Adam 8, and sum of clipped gradients and noise in float64, 8 each.
_BYTES_PER_PARAMETER = 32
# A backward pass multiplies every activation twice: once for inputs, once for weights.
_BACKWARD_FACTOR = 3
_TRIAL_SECONDS = 0.1
_TRIAL_VIEWS = 1024


@dataclass(frozen=True)
class Cost:
    """Cost of one run."""

    parameters: int
    views: float  # expected noised copies over the whole training, T·E[B]·K
    flops_per_view: int  # forward and backward
    training_flops: float
    sampling_flops: float  # all images, all evaluations, guidance included
    # Weights, optimiser and the activations that are held at a time; images and the Python, torch
    # and Ray runtimes come on top.
    worker_bytes: int
    gradient_engine: str  # how clipped gradients are computed; has no influence on them
    micro_batch: int  # records at a time; has no influence either
    # From the trial; None where there was none.
    device: str | None = None
    views_per_second: float | None = None
    training_seconds: float | None = None  # by the spec's workers; "auto" counts as one
    sampling_seconds: float | None = None  # by one actor


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

    def attack(self) -> tuple[TradeOff, ...]:
        """Return what an attacker could do at most to a record and to a unit, by the trade-off."""
        privacy = self.spec.privacy
        charged = [component.mechanism for component in self.components]
        return trade_offs([charged], privacy.delta, privacy.records_per_unit)

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


def with_declared_unit(spec: Spec, home: Home) -> Spec:
    """Return the spec with the unit of privacy that its data set was declared with, if it was.

    For showing alone: the spec's hash changes with it. Raises as `budget_quotes`.
    """
    try:
        facts = read_budget(home).odometer(spec.data.name).facts
    except (NoLedger, BudgetRefused):
        facts = None
    if facts is None:
        return spec
    declared = {"unit": facts.unit, "records_per_unit": facts.records_per_unit}
    return spec.model_copy(update={"privacy": spec.privacy.model_copy(update=declared)})


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
        IntegrityBroken: it is damaged, missing or replaced.
    """
    asked = {TRAIN: plan.components, HOLDOUT: plan.holdout_components}
    try:
        budget = read_budget(home)
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


def estimate(spec: Spec, method: Method, views: float, *, trial: bool = True) -> Cost:
    """Return the cost of running `spec`, whose method takes that many views in all.

    With a trial the network is timed for a moment on this machine.

    Raises:
        InvalidRequest: the spec's network cannot be built.
    """
    # Torch takes seconds to import on a slow machine, and only this needs it.
    from pipeline.models import build_denoiser, build_sampler
    from privacy.gradients.memory import activation_bytes
    from synth.preconditioning import example_inputs

    denoiser = build_denoiser(spec)
    work = method.workload(denoiser)
    inputs = example_inputs(1, spec.data.channels, spec.data.size)
    with _counted_flops(denoiser) as flops:
        activations = activation_bytes(denoiser, inputs)
    forward = sum(flops)
    guided, direct = 2 if spec.synthesize.guidance > 0 else 1, spec.synthesize.sampler == DIRECT
    evaluations = 0 if direct else spec.synthesize.total * build_sampler(spec).nfe * guided
    parameters = sum(weight.numel() for weight in denoiser.parameters())
    cost = Cost(
        parameters=parameters,
        views=views,
        flops_per_view=forward * _BACKWARD_FACTOR,
        training_flops=views * forward * _BACKWARD_FACTOR,
        sampling_flops=float(evaluations * forward),
        worker_bytes=parameters * _BYTES_PER_PARAMETER + activations * work.views,
        gradient_engine=work.engine,
        micro_batch=work.micro_batch,
    )
    if not trial or not parameters:  # without any, nothing is trained that could be timed
        return cost
    device, rate = _views_per_second(spec, denoiser)
    workers = 1 if spec.resources.workers == "auto" else spec.resources.workers
    return replace(
        cost,
        device=device,
        views_per_second=rate,
        training_seconds=views / rate / workers,
        # An evaluation without a backward pass is a third of a view.
        sampling_seconds=evaluations / (rate * _BACKWARD_FACTOR),
    )


@contextmanager
def _counted_flops(network: Any) -> Iterator[list[int]]:
    """Yield the list to which every product and convolution of a forward pass adds its FLOPs."""
    # torch.utils.flop_counter counts the same, but takes over a second to begin.
    from torch import nn

    from synth.unet import Attention

    flops: list[int] = []

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, Attention):  # q·k and the weighted sum of v
            tokens = output[0, 0].numel()
            flops.append(4 * output.shape[0] * output.shape[1] * tokens**2)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            flops.append(2 * output.numel() * module.weight[0].numel())

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    try:
        yield flops
    finally:
        for hook in hooks:
            hook.remove()


def _views_per_second(spec: Spec, denoiser: Any) -> tuple[str, float]:
    """Return the device and its forward and backward passes a second, in a batch large enough."""
    import torch

    from synth.preconditioning import example_inputs

    device = "cuda" if torch.cuda.is_available() else "cpu"
    denoiser = denoiser.to(device)

    def seconds(views: int) -> float:
        with torch.device(device):
            inputs = example_inputs(views, spec.data.channels, spec.data.size)
        start = time.perf_counter()
        denoiser(*inputs).square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    views = 1
    seconds(views)  # the first pass builds kernels and takes memory
    while (taken := seconds(views)) < _TRIAL_SECONDS and views < _TRIAL_VIEWS:
        views *= 2
    return device, views / taken
