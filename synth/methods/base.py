"""The contract of a method: a way to fit a generator on private records under charges.

A method says which components it charges for a wanted (ε, δ), fits on records given a meter that
charges them, and hands the samplers a denoiser. Planning opens no records.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from privacy.errors import UmbraError
from privacy.keystream import derive
from privacy.ledger.records import Component
from privacy.validation import KEY_BYTES, key_bytes
from synth.settings import ModelSettings

if TYPE_CHECKING:
    # Importing and planning must not need torch.
    from torch import Generator, Tensor

    from privacy.collective import Collective
    from privacy.noise import SecureGaussian
    from synth.origin import Origin
    from synth.preconditioning import Denoiser
    from synth.records import Records
    from synth.storage import StoragePath

# Called with (component, steps done, steps in all) after every step.
OnProgress = Callable[[str, int, int], None]


class Stopped(UmbraError):
    """Fitting ended early because that was asked for; what it had is in a checkpoint."""


@dataclass(frozen=True)
class PublicFacts:
    """What is public about the images: size, channels and number of classes."""

    size: int
    channels: int
    classes: int


@dataclass(frozen=True)
class WorkerResources:
    """What a worker has; no result depends on it."""

    device_type: str  # "cpu" or "cuda"
    memory_gib: float | None = None  # None where the spec states none
    workers: int = 1  # 1 also where that is not known yet


@dataclass(frozen=True)
class Extent:
    """How far fitting goes; known without torch."""

    numbers: Mapping[str, int | float]  # the method's own for a plan: noise multiplier and the like
    views: float  # expected forward and backward passes of one image, over all workers
    steps: int  # that `fit` reports on, of all phases
    max_workers: int  # with more, some would be idle


@dataclass(frozen=True)
class Workload:
    """What a worker holds at a time; an estimate."""

    engine: str  # how clipped gradients are computed
    micro_batch: int  # records
    views: int  # images whose activations are held


_NOISE_DOMAIN = "umbra/attempt-noise/1"
_PUBLIC_DOMAIN = "umbra/attempt-public/1"
_START_DOMAIN = "umbra/attempt-start/1"
_SEEDED_DOMAIN = "umbra/seeded-run/1"


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run: what it draws its randomness from, and what pays for it.

    Attributes:
        number: 1, 2, ...; a retry has the next one, and with it fresh masks and noise.
        key: the secret of this start of the run, 32 bytes, the same on all its workers.
        seed: makes noise reproducible and the run void of privacy; None otherwise.
        origin: what its checkpoints are sealed as; None outside a run.
    """

    number: int
    key: bytes = field(repr=False)
    seed: int | None = None
    origin: "Origin | None" = None

    @classmethod
    def start(
        cls,
        number: int,
        run_key: bytes,
        seed: int | None,
        collective: "Collective",
        origin: "Origin | None" = None,
    ) -> Self:
        """Begin an attempt on every worker, with a fresh key; `number` is rank 0's."""
        number = collective.broadcast_from_rank0(number)
        if seed is not None:
            # The only case in which a key repeats.
            return cls(number, derive(bytes(KEY_BYTES), _SEEDED_DOMAIN, seed), seed, origin)
        # Fresh whatever the number: two processes that both take themselves for attempt 2, one of
        # them thought dead, still draw other masks.
        fresh = collective.broadcast_from_rank0(secrets.randbits(63))
        return cls(number, derive(run_key, _START_DOMAIN, fresh), origin=origin)

    def noise(self) -> "SecureGaussian":
        """Return this attempt's own noise stream."""
        from privacy.noise import SecureGaussian

        if self.seed is None:
            return SecureGaussian()
        # Even a seeded run never uses a noise stream twice: the attempt is part of its seed.
        key = derive(key_bytes(self.key), _NOISE_DOMAIN, self.seed, self.number)
        return SecureGaussian.seeded(int.from_bytes(key[:8], "big"))

    def generator(self) -> "Generator":
        """Return a generator for what needs no privacy: weights and the warm-up's own draws."""
        import torch

        key = derive(key_bytes(self.key), _PUBLIC_DOMAIN, self.number)
        return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)


class Meter(Protocol):
    """Charges one reservation on the ledger, directly or through an actor."""

    def charge(self, component: str, steps: int) -> str:
        """Charge steps durably before they run and return the ledger's head.

        Raises:
            BudgetRefused: the reservation has fewer steps left; nothing may run.
        """

    def remaining(self, component: str) -> int:
        """Return how many reserved steps were never charged."""


class Method(ABC):
    """One way to fit a generator on N `records`, which is public under the zero-out relation."""

    name: ClassVar[str]
    sections: ClassVar[tuple[str, ...]]  # of a spec, that the constructor takes by name

    @abstractmethod
    def __init__(
        self,
        records: int,
        facts: PublicFacts,
        clip_norm: float,
        resources: WorkerResources,
        **sections: Any,
    ) -> None: ...

    @abstractmethod
    def components(
        self, epsilon: float, delta: float, calibration: Literal["rdp", "prv"]
    ) -> tuple[Component, ...]:
        """Return what `fit` charges, in order; all together meet (ε, δ) under that accountant.

        Raises:
            InvalidRequest: no noise meets it.
        """

    @abstractmethod
    def extent(self, components: Sequence[Component]) -> Extent:
        """Return how far `fit` goes with these components."""

    @abstractmethod
    def workload(self, denoiser: "Denoiser") -> Workload:
        """Estimate what a worker holds while it fits `denoiser`."""

    @abstractmethod
    def fit(
        self,
        records: "Records",
        components: Sequence[Component],
        attempt: Attempt,
        meter: Meter,
        checkpoints: "StoragePath",
        collective: "Collective | None" = None,
        on_progress: OnProgress = lambda component, done, total: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> "Mapping[str, Tensor]":
        """Fit on every worker of one attempt and return the weights that `denoiser` loads.

        Goes on from the newest sound checkpoint. Nothing is drawn that `meter` has not charged
        before, and nothing is returned, written or reported that was computed from records without
        noise.

        Args:
            records: those that this worker owns, on the device to compute on.
            components: what was reserved; a plan made anew might calibrate another noise.
            attempt: the source of randomness.
            meter: charges the ledger; only rank 0 calls it.
            checkpoints: folder for checkpoints, internal to the run.
            collective: the other workers, if any.
            on_progress: called after every step.
            stopping: whether to end soon; only rank 0's counts. From then on nothing more is
                charged, and what was drawn is kept in checkpoints.

        Raises:
            BudgetRefused: the ledger refuses a charge.
            LedgerUnavailable: the ledger cannot be reached; nothing more was drawn.
            Stopped: `stopping` returned True.
        """

    @staticmethod
    @abstractmethod
    def denoiser(facts: PublicFacts, model: ModelSettings) -> "Denoiser":
        """Return D(x; σ, y) with fresh weights, on the CPU; the label `facts.classes` is null.

        Raises:
            InvalidRequest: the numbers do not make a network.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return a clause for the data set card: how the generator was fitted."""
