"""Runs of the private step on toy data, and the evidence that an audit takes from them."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from privacy.collective import Collective, SingleProcess
from privacy.dp_sgd import DPSGD, PrivateGradient
from privacy.gradients import ENGINES, base
from privacy.keystream import os_key
from privacy.noise import SecureGaussian
from privacy.poisson import PoissonSampler
from privacy.records import LabelledRecords, OwnedRecords, own

LAYERS = 3
IDLE = 8  # coordinates that belong to no record

# Norms of toy records in units of C: a clip that is a little off shows where a norm is just above C
# or just below it, and a missing one where it is far above. The first is the canary's.
NORMS = (1.01, 0.99, 1.5, 3.0, 30.0, 3e4)


def toy_size(q: float) -> int:
    """Return how many toy records make a batch of about two, between 8 and 512."""
    return int(min(max(np.ceil(2 / q), 8), 512))


class Readout(nn.Module):
    """Several layers that are each multiplied with their part of the record: x [K, layers, d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [torch.zeros(width, dtype=torch.float64) for _ in range(LAYERS)]
        self.layers = nn.ParameterList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return [K]."""
        return torch.stack([x[:, i] @ layer for i, layer in enumerate(self.layers)]).sum(dim=0)


def mean_output(model: base.ModelCall, views: Tensor) -> Tensor:
    """Return the loss of one record, the mean over its views [K, layers, width]."""
    return model(views).mean()


@dataclass(frozen=True)
class Toy:
    """Toy records of one mechanism."""

    dpsgd: DPSGD  # the mechanism; its number of records is that of the toys
    views: int  # K, copies of a record, which point in different directions

    @property
    def canary(self) -> int:
        """The record whose presence is attacked; now one worker's, now another's."""
        return self.dpsgd.records - 1

    @cached_property
    def model(self) -> Readout:
        """The network; nothing trains it."""
        return Readout(self.dpsgd.records + IDLE)

    @property
    def norms(self) -> np.ndarray:
        """Norms of the records' gradients in units of C, float64 [N]."""
        return np.resize(NORMS, self.dpsgd.records)[::-1]

    @cached_property
    def records(self) -> Tensor:
        """Views [N, K, layers, width], float64.

        They come in pairs that stray from their mean as far as it is long, on idle coordinates and
        in opposite directions.
        """
        n, norms = self.dpsgd.records, torch.from_numpy(self.dpsgd.clip_norm * self.norms)
        views = torch.zeros(n, self.views, LAYERS, n + IDLE, dtype=torch.float64)
        every = torch.arange(n)
        views[every, :, :, every] = (norms / LAYERS**0.5)[:, None, None]
        stray = (norms / (LAYERS * IDLE) ** 0.5)[:, None, None, None]
        paired = self.views // 2 * 2
        views[:, 0:paired:2, :, n:] += stray
        views[:, 1:paired:2, :, n:] -= stray
        return views

    def with_noise(self, noise_multiplier: float) -> Self:
        """Return the same records under another noise."""
        dpsgd = dataclasses.replace(self.dpsgd, noise_multiplier=noise_multiplier)
        return dataclasses.replace(self, dpsgd=dpsgd)

    def in_units(self, gradients: np.ndarray) -> np.ndarray:
        """Scale gradients so that a step of norm C is 1 on each of a record's coordinates."""
        return gradients * (self.dpsgd.expected_batch * LAYERS**0.5 / self.dpsgd.clip_norm)

    def in_deviations(self, gradients: np.ndarray) -> np.ndarray:
        """Scale gradients so that noise is standard normal."""
        spread = self.dpsgd.noise_multiplier * self.dpsgd.clip_norm
        return gradients * (self.dpsgd.expected_batch / spread)


@dataclass(frozen=True)
class Start:
    """One start of a training, the same on all its workers."""

    key: bytes = field(repr=False)  # a secret: of this start, or of the run that is started
    attempt: int = 1
    seed: int | None = None  # where given, another start with key, attempt and seed is the same


class Path(Protocol):
    """What an audit runs: everything from a start to the noised mean gradients of its steps."""

    @property
    def engine(self) -> base.GradientEngine:
        """The gradient engine that it uses."""

    @property
    def key(self) -> Callable[[], bytes]:
        """Returns the secret of the next start."""

    def take(
        self,
        toy: Toy,
        start: Start,
        collective: Collective,
        steps: int,
        present: np.ndarray,
        bad: float | None = None,
    ) -> np.ndarray:
        """Begin on one worker, and return its gradients, float64 [steps, layers, width].

        `present` holds the numbers, int64, of the records that are there; others are zeroed out.
        `bad`, which is not finite, gets into one view of the canary.
        """


def loaded_by(rank: int, present: np.ndarray) -> list[LabelledRecords]:
    """Return toy records as a worker loads them, in an order of its own: values are their numbers.

    No batch where none is present.
    """
    # Turned by its rank, so that all workers would own the same records if owners went by place.
    order = np.roll(present, rank).astype("<i8")
    values, labels = order.view(np.uint8).reshape(-1, 8), np.zeros(len(order), np.int64)
    return [LabelledRecords(values, labels)] if len(order) else []


@dataclass(frozen=True)
class StepPath:
    """The step alone, between a record and the noised mean gradient, put together from its parts.

    The defaults are what training uses. Another part in place of one of them is audited as if it
    shipped.
    """

    key: Callable[[], bytes] = os_key  # the secret of one start
    # From (batches, key, rank, size, N), the records of one worker.
    own: Callable[..., OwnedRecords] = own
    # From (key, attempt, q), the batches of one attempt.
    sampler: Callable[[bytes, int, float], PoissonSampler] = PoissonSampler
    # A worker's noise stream, drawn anew on every worker of every start.
    noise: Callable[[], SecureGaussian] = SecureGaussian
    engine: base.GradientEngine = ENGINES["record"]  # audit the one that training chooses
    step: Callable[..., PrivateGradient] = PrivateGradient  # puts the others together

    def take(
        self,
        toy: Toy,
        start: Start,
        collective: Collective,
        steps: int,
        present: np.ndarray,
        bad: float | None = None,
    ) -> np.ndarray:
        """See `Path.take`."""
        data = toy.records
        if bad is not None:
            data = data.clone()
            data[toy.canary, -1, -1, toy.canary] = bad
        rank, size = collective.rank, collective.size
        owned = self.own(loaded_by(rank, present), start.key, rank, size, toy.dpsgd.records)
        rows = np.frombuffer(owned.values.tobytes(), "<i8")

        def gather(positions: np.ndarray) -> tuple[Tensor, ...]:
            return (data[rows[positions]],)

        noise = self.noise() if start.seed is None else SecureGaussian.seeded(start.seed)
        masks = self.sampler(start.key, start.attempt, toy.dpsgd.sampling_probability)
        gradient = self.step(toy.dpsgd, masks, noise, self.engine, collective, _MICRO_BATCH)
        taken = [gradient(step, toy.model, mean_output, owned.ids, gather) for step in range(steps)]
        return np.stack([np.stack([part.numpy() for part in one.values()]) for one in taken])


_PATIENCE = 60.0  # seconds that a worker waits for the others

T = TypeVar("T")


class _Worker:
    """The `Collective` of one worker; all workers of a start share barrier, turn and slots."""

    def __init__(
        self, rank: int, barrier: threading.Barrier, turn: threading.Lock, slots: list[Any]
    ) -> None:
        self.rank, self.size = rank, len(slots)
        self._barrier, self._turn, self._slots = barrier, turn, slots

    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums, added in the order of ranks on every worker."""
        first, *others = self._exchange(tensors)
        return {name: sum((part[name] for part in others), first[name]) for name in tensors}

    def broadcast_from_rank0(self, value: int) -> int:
        """Return the value of rank 0."""
        return int(self._exchange(value)[0])

    def _exchange(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._turn.release()
        try:
            self._barrier.wait(_PATIENCE)
            values = list(self._slots)
            # No worker may write again before all have read.
            self._barrier.wait(_PATIENCE)
        finally:
            self._turn.acquire()
        return values


def run_workers(size: int, work: Callable[[Collective], T]) -> list[T]:
    """Call `work` on `size` workers that are joined by a collective; return results by rank.

    Raises what the first worker to fail raised; BrokenBarrierError where not all asked for the same
    sums.
    """
    if size == 1:
        return [work(SingleProcess())]
    # Only one works at a time: torch keeps some switches for the whole process, and threads that
    # disturb each other are not what is audited.
    barrier, turn, slots = threading.Barrier(size), threading.Lock(), [None] * size

    def guarded(rank: int) -> T:
        with turn:
            try:
                return work(_Worker(rank, barrier, turn, slots))
            except BaseException:
                # The others would wait for this worker in vain.
                barrier.abort()
                raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(guarded, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception())]
    # A broken barrier follows from the first error, which is the one to show.
    errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


_MICRO_BATCH = 3  # smaller than most batches, so that batches are made of several


@dataclass(frozen=True)
class Outcome:
    """The results of the starts of one run."""

    # float64 [starts, steps, layers, width] as rank 0 holds them, 0 for what is not finite.
    gradients: np.ndarray
    finite: bool  # whether all of them were finite
    agreed: bool  # whether every worker of every start held the same


def run(
    path: Path,
    toy: Toy,
    *,
    workers: int,
    starts: Sequence[Start],
    steps: int,
    present: np.ndarray,
    bad: float | None = None,
) -> Outcome:
    """Begin a training for every one of `starts` and take `steps` steps of each; see `Path.take`.

    Every start that has no seed has noise of its own.
    """

    def work(collective: Collective) -> np.ndarray:
        return np.stack(
            [path.take(toy, start, collective, steps, present, bad) for start in starts]
        )

    found, *others = run_workers(workers, work)
    agreed = all(np.array_equal(found, other, equal_nan=True) for other in others)
    finite = np.isfinite(found)
    return Outcome(np.where(finite, found, 0.0), bool(finite.all()), agreed)


ATTEMPTS = (1, 2)

QUIET = 2.0**-40  # so little noise that what a step did to every record can be read off
_SHARE = 4  # trials for every start that serves the checks alone


@dataclass(frozen=True)
class Evidence:
    """Results by number of workers."""

    toy: Toy  # the records
    present: dict[int, Outcome]  # starts with all records
    absent: dict[int, Outcome]  # starts without the canary
    empty: dict[int, Outcome]  # starts without any record
    # Starts with all records and hardly any noise, for each attempt; start i of any number of
    # workers and any attempt has the same key and seed.
    quiet: dict[int, tuple[Outcome, ...]]
    # The same of the first attempt without a seed: nothing that they draw may be the same.
    restarts: dict[int, Outcome]

    @classmethod
    def gather(
        cls, path: Path, toy: Toy, workers: Sequence[int], trials: int, steps: int
    ) -> "Evidence":
        """Run `path`: `trials` starts with, and as many without, the canary, and others beside."""
        everyone = np.arange(toy.dpsgd.records)
        count = trials // len(workers)
        few = max(count // _SHARE, 2)
        quiet_toy = toy.with_noise(QUIET)
        keys = [path.key() for _ in range(few)]

        def runs(present: np.ndarray, starts: int, of: Toy = toy) -> dict[int, Outcome]:
            return {
                size: run(
                    path,
                    of,
                    workers=size,
                    starts=[Start(path.key()) for _ in range(starts)],
                    steps=steps,
                    present=present,
                )
                for size in workers
            }

        def seeded(size: int, attempt: int) -> Outcome:
            starts = [Start(key, attempt, seed) for seed, key in enumerate(keys)]
            return run(path, quiet_toy, workers=size, starts=starts, steps=steps, present=everyone)

        return cls(
            toy,
            present=runs(everyone, count),
            absent=runs(np.delete(everyone, toy.canary), count),
            empty=runs(everyone[:0], few),
            quiet={size: tuple(seeded(size, attempt) for attempt in ATTEMPTS) for size in workers},
            restarts=runs(everyone, few, quiet_toy),
        )

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the results of all runs."""
        for runs in (self.present, self.absent, self.empty, self.restarts):
            yield from runs.values()
        for attempts in self.quiet.values():
            yield from attempts

    def scores(self, canary: bool, steps: int) -> np.ndarray:
        """Return the log-likelihood ratio of each start, with the canary over without: [starts].

        Over `steps` steps the sum of ln(1 - q + q exp((2 x - 1) / (2 sigma^2))), where x is the
        projection of a gradient on the canary's, in units of C / (q N).
        """
        outcomes = self.present if canary else self.absent
        gradients = np.concatenate([outcome.gradients for outcome in outcomes.values()])
        units = self.toy.in_units(gradients[:, :steps, :, self.toy.canary])
        x = units.sum(axis=-1) / LAYERS
        q, sigma = self.toy.dpsgd.sampling_probability, self.toy.dpsgd.noise_multiplier
        with np.errstate(divide="ignore"):
            left_out = np.log1p(-q)
        taken = np.log(q) + (2 * x - 1) / (2 * sigma**2)
        return np.logaddexp(left_out, taken).sum(axis=1)

    @cached_property
    def noise(self) -> dict[int, np.ndarray]:
        """Noise in standard deviations where no record adds to it: [starts, steps, coordinates]."""
        idle = slice(self.toy.dpsgd.records, None)
        pairs = {size: (one, self.absent[size]) for size, one in self.present.items()}
        return {
            size: self._deviations(np.concatenate([o.gradients[..., idle] for o in both]))
            for size, both in pairs.items()
        }

    @cached_property
    def noise_of_empty_batches(self) -> dict[int, np.ndarray]:
        """Noise in standard deviations of steps without records: [starts, steps, coordinates]."""
        return {size: self._deviations(one.gradients) for size, one in self.empty.items()}

    def _deviations(self, gradients: np.ndarray) -> np.ndarray:
        return self.toy.in_deviations(gradients).reshape(*gradients.shape[:2], -1)

    @cached_property
    def steps_of_records(self) -> dict[int, np.ndarray]:
        """Quiet steps in units of a clipped record: [starts, attempts, steps, layers, width]."""
        return {
            size: self.toy.in_units(np.stack([one.gradients for one in attempts], axis=1))
            for size, attempts in self.quiet.items()
        }

    @cached_property
    def masks(self) -> dict[int, np.ndarray]:
        """Which records were in a batch of the seeded starts: bool [starts, attempts, steps, N]."""
        return {size: self._taken(moved) for size, moved in self.steps_of_records.items()}

    @cached_property
    def masks_of_restarts(self) -> dict[int, np.ndarray]:
        """Which records were in a batch of starts without a seed: bool [starts, steps, N]."""
        found = {size: self.toy.in_units(one.gradients) for size, one in self.restarts.items()}
        return {size: self._taken(moved) for size, moved in found.items()}

    def _taken(self, moved: np.ndarray) -> np.ndarray:
        return np.asarray(moved[..., 0, : self.toy.dpsgd.records] > 0.5)
