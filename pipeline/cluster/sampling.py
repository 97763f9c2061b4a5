"""Sampling on a pool of Ray actors, which make whole shards, whoever of them dies or is slow."""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from time import monotonic
from typing import Any

import ray
import torch

from pipeline.cluster.actor_group import ActorPool, Finished, tune_malloc
from pipeline.cluster.calls import WorkerDied, wait, waiting_for_room
from pipeline.models import ImageSampler
from pipeline.spec import Spec
from privacy.errors import UmbraError
from synth.data.manifest import ShardEntry
from synth.data.shards import PngEncoder, Shard, shard_generator, write_shard
from synth.origin import weights_mark
from synth.samplers import DIRECT
from synth.storage import StoragePath

# A shard whose actor died so often kills them, by its size or by what it is.
MAX_DEATHS_PER_SHARD = 4
# Actors in a row that died before they made anything: the next would, too.
MAX_STARTUP_FAILURES = 8
# A copy is begun of what takes this many times as long as shards of its size did.
SLOW = 1.5
_SECONDS = 0.5  # between two looks at the actors


@dataclass(frozen=True)
class _Work:
    shard: Shard
    begun: float


class ShardSchedule:
    """Which shard goes to which actor, known by its number; without Ray and without a clock.

    A shard that two make is the same rows twice (a function of weights, spec and number) in one
    atomic file, so that the second copy costs time and nothing else.
    """

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._waiting = deque(shards)
        self._open = {shard.number for shard in self._waiting}
        self._working: dict[int, _Work] = {}
        self._deaths: Counter[int] = Counter()
        self._startup_failures = 0
        self._seconds_per_row: list[float] = []

    @property
    def finished(self) -> bool:
        """Whether every shard is made."""
        return not self._open

    @property
    def open_shards(self) -> frozenset[int]:
        """Numbers of the shards that are not made yet: more actors than these have no work."""
        return frozenset(self._open)

    def take(self, actor: int, now: float) -> Shard | None:
        """Give an idle actor a shard to begin now; None where there is nothing for it yet."""
        assert actor not in self._working  # noqa: S101
        shard = self._waiting.popleft() if self._waiting else self._straggler(now)
        if shard is not None:
            self._working[actor] = _Work(shard, now)
        return shard

    def done(self, actor: int, now: float) -> bool:
        """Note that an actor made its shard; False if another had made the same before."""
        work = self._working.pop(actor)
        self._startup_failures = 0
        self._seconds_per_row.append((now - work.begun) / len(work.shard.labels))
        first = work.shard.number in self._open
        self._open.discard(work.shard.number)
        return first

    def lost(self, actor: int) -> None:
        """Note that an actor died, at work, idle or before it began.

        Raises:
            UmbraError: its shard has killed too many, or actors die as soon as they start.
        """
        work = self._working.pop(actor, None)
        if work is None:
            self._startup_failures += 1
            if self._startup_failures >= MAX_STARTUP_FAILURES:
                raise UmbraError(
                    f"{self._startup_failures} sampling workers died before they could begin; look "
                    "into Ray's logs on their machines (memory, image, installed packages), then "
                    "`umbra resume` continues with the shards that are missing"
                )
            return
        number = work.shard.number
        self._deaths[number] += 1
        if number not in self._open:
            return
        if self._deaths[number] >= MAX_DEATHS_PER_SHARD:
            raise UmbraError(
                f"{MAX_DEATHS_PER_SHARD} sampling workers died over shard {number}, out of memory "
                "or killed; give them more memory or set a smaller synthesize.batch, or wait until "
                "the machines are stable; `umbra resume` continues with the shards that are missing"
            )
        if not self._copies(number):
            # In front: the oldest work first, so that the end does not wait for it.
            self._waiting.appendleft(work.shard)

    def take_back(self) -> list[int]:
        """Free the actors whose shard another has made, and return them: end what they do."""
        overtaken = [a for a, work in self._working.items() if work.shard.number not in self._open]
        for actor in overtaken:
            del self._working[actor]
        return overtaken

    def _copies(self, number: int) -> int:
        return sum(work.shard.number == number for work in self._working.values())

    def _straggler(self, now: float) -> Shard | None:
        """Return the shard that is the longest at work, if it is slow and has no second copy."""
        if not self._seconds_per_row:
            return None
        limit = SLOW * median(self._seconds_per_row)
        slow = [
            work
            for work in self._working.values()
            if work.shard.number in self._open
            and self._copies(work.shard.number) == 1
            and now - work.begun > limit * len(work.shard.labels)
        ]
        return min(slow, key=lambda work: work.begun).shard if slow else None


class ShardSampler:
    """Makes shards of one run; a shard is a function of (weights, spec, number) alone."""

    def __init__(self, spec: Spec, weights: StoragePath, folder: StoragePath) -> None:
        self._spec = spec
        self._weights = weights
        self._folder = folder
        self._progress = (0, 0)
        on_gpu = spec.resources.gpus_per_worker > 0 and spec.synthesize.sampler != DIRECT
        self._device = torch.device("cuda" if on_gpu else "cpu")

    @cached_property
    def _images(self) -> ImageSampler:
        # Loaded by the first shard and not by the constructor, whose errors Ray reports as the
        # death of a process: damaged weights are an error of their own.
        return ImageSampler(self._spec, self._weights, self._device)

    @cached_property
    def _mark(self) -> dict[str, Any] | None:
        return weights_mark(self._weights.read_bytes())

    def progress(self) -> tuple[int, int]:
        """Return the number of the shard that is being made, and how many of its images are."""
        return self._progress

    def make(self, shard: Shard, of: int) -> ShardEntry:
        """Sample the shard's images and write them; a batch is encoded beside the next one."""
        # One thread: sums in another order would change last bits, and a shard's bytes with them.
        torch.set_num_threads(1)
        tune_malloc()
        generator = shard_generator(self._spec.synthesize.seed, shard.number, self._device)

        def on_images(done: float) -> None:
            self._progress = (shard.number, min(int(done), len(shard.labels)))

        with PngEncoder() as encoder:
            for images in self._images.draw(torch.tensor(shard.labels), generator, on_images):
                encoder.add(images)
            pngs = encoder.pngs()
        names = self._spec.data.classes
        return write_shard(self._folder, shard, of, pngs, class_names=names, mark=self._mark)


def make_shards(
    spec: Spec,
    weights: StoragePath,
    folder: StoragePath,
    shards: list[Shard],
    of: int,
    on_shard: Callable[[ShardEntry], None],
    on_images: Callable[[int], None] = lambda done: None,
) -> None:
    """Make the given shards of `of` on as many actors as the spec and the cluster allow.

    Actors are added when the cluster grows. The shard of one that died is made by another, and
    one that lags behind is made twice. `on_shard` is called once for each shard that is made,
    `on_images` with the images done so far, those in unfinished shards included.

    Raises:
        UmbraError: as a worker raised it, or workers die again and again.
    """
    gpus = spec.resources.gpus_per_worker
    schedule, idle, made = ShardSchedule(shards), list[int](), 0
    pool = ActorPool(ShardSampler, spec, weights, folder, num_cpus=1, num_gpus=gpus)
    try:
        while not schedule.finished:
            while len(pool) < min(_room(spec), len(schedule.open_shards)):
                pool.start()
            for actor in list(idle):
                if shard := schedule.take(actor, monotonic()):
                    idle.remove(actor)
                    pool.call(actor, "make", shard, of)
            waiting = waiting_for_room("sampling workers", {"CPU": 1, "GPU": gpus})
            with nullcontext() if pool.working else waiting:
                ready, _ = wait(pool.pending, _SECONDS if pool.working else None)
            for end in pool.ended(ready):
                if entry := _settle(schedule, pool, idle, end):
                    on_shard(entry)
                    made += entry.rows
            for actor in schedule.take_back():
                pool.dismiss(actor)
            partly = dict(sorted(pool.progress().values()))
            on_images(made + sum(partly.get(number, 0) for number in schedule.open_shards))
    finally:
        pool.dismiss_all()


def _settle(
    schedule: ShardSchedule, pool: ActorPool, idle: list[int], end: Finished
) -> ShardEntry | None:
    """Note the end of a call; return the entry of a shard that was made for the first time."""
    if isinstance(end.error, WorkerDied):
        pool.dismiss(end.actor)
        schedule.lost(end.actor)
        return None
    if end.error is not None:
        raise end.error
    idle.append(end.actor)
    first = not end.started and schedule.done(end.actor, monotonic())
    return end.result if first else None


def _room(spec: Spec) -> int:
    """Return how many actors have room beside each other now, up to what the spec allows."""
    kind, each = "CPU", 1.0
    if spec.resources.gpus_per_worker > 0:
        kind, each = "GPU", spec.resources.gpus_per_worker
    room = max(1, int(ray.cluster_resources().get(kind, 1) / each))
    wanted = spec.resources.sampling_actors
    return room if wanted == "auto" else min(room, wanted)
