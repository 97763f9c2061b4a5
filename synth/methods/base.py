"""The contract of a method: a way to fit a generator on private records under charges.

A method says which components it charges for a wanted (ε, δ), fits on records given a meter that
charges them, and hands the samplers a denoiser. Planning opens no records and imports no torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from privacy.ledger.records import Component
from synth.settings import ModelSettings

if TYPE_CHECKING:
    from torch import Tensor

    from privacy.collective import Collective
    from synth.attempt import Attempt, Meter
    from synth.preconditioning import Denoiser
    from synth.records import Records
    from synth.storage import StoragePath

# Called with (component, steps done, steps in all) after every step.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PublicFacts:
    """What is public about the records: N, and the images' size, channels and classes."""

    records: int
    size: int
    channels: int
    classes: int


@dataclass(frozen=True)
class PrivacyTarget:
    """The (ε, δ) that is asked for and the accountant under which it has to hold."""

    epsilon: float
    delta: float
    calibration: Literal["rdp", "prv"] = "rdp"


@dataclass(frozen=True)
class WorkerResources:
    """What a worker has; no result depends on it.

    Attributes:
        device_type: "cpu" or "cuda".
        memory_gib: memory of a worker, or None where the spec states none.
        workers: how many there are; 1 where that is not known yet.
    """

    device_type: str
    memory_gib: float | None = None
    workers: int = 1


@dataclass(frozen=True)
class Workload:
    """What fitting costs, in expectation; an estimate.

    Attributes:
        views: forward and backward passes of the network for one image, over all workers.
        views_at_once: those whose activations a worker holds at a time.
        engine: how clipped gradients are computed.
        micro_batch: records at a time.
    """

    views: float
    views_at_once: int
    engine: str
    micro_batch: int


class Method(ABC):
    """One way to fit a generator, with its settings.

    Args:
        facts: what is public about the records.
        clip_norm: C of a record's contribution.
        resources: what a worker has.
        sections: the spec's sections that the class names in `sections`, by name.
    """

    name: ClassVar[str]
    sections: ClassVar[tuple[str, ...]]

    @abstractmethod
    def __init__(
        self, facts: PublicFacts, clip_norm: float, resources: WorkerResources, **sections: Any
    ) -> None: ...

    @abstractmethod
    def components(self, target: PrivacyTarget) -> tuple[Component, ...]:
        """Return what `fit` charges, in order, so that all together meet the target.

        Raises:
            InvalidRequest: no noise meets it.
        """

    @abstractmethod
    def public_numbers(self, components: Sequence[Component]) -> dict[str, int | float]:
        """Return the method's own numbers for a plan: noise multiplier, steps and the like."""

    @abstractmethod
    def workload(self, components: Sequence[Component]) -> Workload:
        """Estimate what fitting costs; opens no records."""

    @abstractmethod
    def total_steps(self, components: Sequence[Component]) -> int:
        """Return how many steps, of all phases, `fit` reports on in all."""

    @abstractmethod
    def max_workers(self, components: Sequence[Component]) -> int:
        """Return the number of workers beyond which some would be idle."""

    @abstractmethod
    def fit(
        self,
        records: "Records",
        components: Sequence[Component],
        attempt: "Attempt",
        meter: "Meter",
        checkpoints: "StoragePath",
        collective: "Collective | None" = None,
        on_progress: OnProgress = lambda component, done, total: None,
    ) -> "Mapping[str, Tensor]":
        """Fit on every worker of one attempt and return the weights that `denoiser` loads.

        Goes on from the newest sound checkpoint. Nothing is drawn that `meter` has not charged
        before, and nothing is returned, written or reported that was computed from records without
        noise.

        Args:
            records: all private records, on the device to compute on.
            components: what was reserved. The reservation decides, not a plan made anew: another
                version of a library might calibrate another noise from the same spec.
            attempt: the source of randomness.
            meter: charges the ledger; only rank 0 calls it.
            checkpoints: folder for checkpoints, internal to the run.
            collective: the other workers, if any.
            on_progress: called after every step.

        Raises:
            BudgetRefused: the ledger refuses a charge.
            LedgerUnavailable: the ledger cannot be reached; nothing more was drawn.
            UmbraError: it failed, in words for a person.
        """

    @classmethod
    @abstractmethod
    def denoiser(cls, facts: PublicFacts, model: ModelSettings) -> "Denoiser":
        """Return D(x; σ, y) with fresh weights, on the CPU: what the samplers are handed."""

    @abstractmethod
    def describe(self) -> str:
        """Return a clause for the data set card: how the generator was fitted."""
