"""Sampling on Ray actors: each holds the weights and makes whole shards."""

from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from itertools import count
from time import monotonic
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from pipeline.cluster.calls import answer
from pipeline.cluster.freed_memory import keep_freed_memory
from pipeline.cluster.messages import ProgressBoard
from pipeline.cluster.shard_schedule import ShardSchedule
from pipeline.models import ImageSampler
from pipeline.spec import Spec
from synth.data.manifest import ShardEntry
from synth.data.shards import PngEncoder, Shard, shard_generator, write_shard
from synth.storage import StoragePath

_SECONDS = 0.5  # between two looks at the cluster


class ShardSampler:
    """Makes shards of one run; a shard is a function of (weights, spec, number) alone.

    Args:
        spec: of the run.
        weights: file of the released weights.
        folder: the release.
        progress: told how many images of a shard, by its number, are done.
    """

    def __init__(
        self,
        spec: Spec,
        weights: StoragePath,
        folder: StoragePath,
        progress: ProgressBoard | None = None,
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._folder = folder
        self._progress = progress
        gpu = spec.resources.gpus_per_worker > 0
        self._device = torch.device("cuda" if gpu else "cpu")

    @cached_property
    def _images(self) -> ImageSampler:
        # Loaded by the first shard and not with the actor, or damaged weights would arrive as the
        # death of a process.
        return ImageSampler(self._spec, self._weights, self._device)

    def make(self, shard: Shard, of: int) -> ShardEntry:
        """Sample the shard's images and write them; a batch is encoded beside the next one."""
        # One thread: sums in another order would change last bits, and a shard's bytes with them.
        torch.set_num_threads(1)
        keep_freed_memory()
        generator = shard_generator(self._spec.synthesize.seed, shard.number, self._device)

        def on_images(done: float) -> None:
            if self._progress:
                self._progress.tell(str(shard.number), int(done), len(shard.labels))

        with PngEncoder() as encoder:
            for images in self._images.draw(torch.tensor(shard.labels), generator, on_images):
                encoder.add(images)
            pngs = encoder.pngs()
        entry = write_shard(self._folder, shard, of, pngs, class_names=self._spec.data.classes)
        if self._progress:
            self._progress.forget(str(shard.number))
        return entry


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
    one that lags behind is made twice; see `ShardSchedule`.

    Args:
        spec: of the run.
        weights: file of the released weights.
        folder: the release.
        shards: those to make.
        of: how many shards the whole set has.
        on_shard: called once for each shard that is made.
        on_images: called with the images done so far, those in unfinished shards included.

    Raises:
        UmbraError: as a worker raised it, or workers die again and again.
    """
    schedule, crew = ShardSchedule(shards), _Crew(spec, weights, folder)
    rows = {shard.number: len(shard.labels) for shard in shards}
    made = 0
    try:
        while not schedule.finished:
            crew.grow(min(_room(spec), len(schedule.open_shards)))
            crew.assign(schedule, of)
            for entry in crew.settle(schedule):
                on_shard(entry)
                made += entry.rows
            partly = {number: crew.done_of(number) for number in schedule.open_shards}
            on_images(made + sum(min(done, rows[number]) for number, done in partly.items()))
    finally:
        crew.end()


class _Crew:
    """The actors of one call: started, given work, waited for, ended."""

    def __init__(self, spec: Spec, weights: StoragePath, folder: StoragePath) -> None:
        self._progress = ProgressBoard()
        self._arguments = (spec, weights, folder, self._progress)
        # Ray restarts nothing: an actor that died is replaced, by the schedule's count and where
        # there is room now.
        self._actor = ray.remote(ShardSampler).options(
            num_cpus=1, num_gpus=spec.resources.gpus_per_worker
        )
        self._names = count()
        self._actors: dict[int, Any] = {}
        self._starting: dict[Any, int] = {}
        self._working: dict[Any, int] = {}
        self._idle: list[int] = []
        self._told: dict[str, int] = {}

    def grow(self, wanted: int) -> None:
        """Start as many actors as are missing; one without room begins when there is some."""
        while len(self._actors) < wanted:
            name = next(self._names)
            self._actors[name] = self._actor.remote(*self._arguments)
            # Work goes to those that have begun: one that waits for room would sit on it.
            self._starting[self._actors[name].__ray_ready__.remote()] = name

    def assign(self, schedule: ShardSchedule, of: int) -> None:
        """Give every idle actor what the schedule has for it."""
        for name in list(self._idle):
            shard = schedule.take(name, monotonic())
            if shard is not None:
                self._idle.remove(name)
                self._working[self._actors[name].make.remote(shard, of)] = name

    def settle(self, schedule: ShardSchedule) -> list[ShardEntry]:
        """Wait a little for what ends; return the entries of shards that are newly made."""
        references = [*self._starting, *self._working]
        ended, _ = ray.wait(references, num_returns=1, timeout=_SECONDS)
        self._told = self._progress.read()
        entries = [entry for reference in ended if (entry := self._ended(reference, schedule))]
        for name in schedule.take_back():
            self._dismiss(name)
        return entries

    def done_of(self, number: int) -> int:
        """Return how many images of an unfinished shard are done, as its actor told last."""
        return self._told.get(str(number), 0)

    def end(self) -> None:
        """End all actors, also those that are stuck."""
        for name in list(self._actors):
            self._dismiss(name)
        self._progress.clear()

    def _ended(self, reference: Any, schedule: ShardSchedule) -> ShardEntry | None:
        """Take in what one reference brought; return the entry of a shard made for the first time.

        Raises:
            UmbraError: as the actor raised it, or too many died.
        """
        began = reference in self._starting
        name = self._starting.pop(reference) if began else self._working.pop(reference)
        try:
            entry = ray.get(reference)
        except RayTaskError:
            entry = answer(reference)  # raises it in words for a user
        except RayError:  # the actor, its node or the way to it is gone
            self._dismiss(name)
            schedule.lost(name)
            return None
        self._idle.append(name)
        return entry if not began and schedule.done(name, monotonic()) else None

    def _dismiss(self, name: int) -> None:
        actor = self._actors.pop(name)
        for references in (self._starting, self._working):
            for reference in [r for r, holder in references.items() if holder == name]:
                del references[reference]
        if name in self._idle:
            self._idle.remove(name)
        with suppress(RayError):
            ray.kill(actor)


def _room(spec: Spec) -> int:
    """Return how many actors have room beside each other now, up to what the spec allows."""
    kind, each = "CPU", 1.0
    if spec.resources.gpus_per_worker > 0:
        kind, each = "GPU", spec.resources.gpus_per_worker
    room = max(1, int(ray.cluster_resources().get(kind, 1) / each))
    wanted = spec.resources.sampling_actors
    return room if wanted == "auto" else min(room, wanted)
