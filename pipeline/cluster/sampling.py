"""Sampling on a pool of Ray actors: each holds the weights and makes whole shards."""

from collections.abc import Callable
from functools import cached_property
from time import monotonic

import ray
import torch

from pipeline.cluster.actor_group import ActorPool, Finished, tune_malloc
from pipeline.cluster.calls import WorkerDied
from pipeline.cluster.shard_schedule import ShardSchedule
from pipeline.models import ImageSampler
from pipeline.spec import Spec
from synth.data.manifest import ShardEntry
from synth.data.shards import PngEncoder, Shard, shard_generator, write_shard
from synth.storage import StoragePath

_SECONDS = 0.5  # between two looks at the actors


class ShardSampler:
    """Makes shards of one run; a shard is a function of (weights, spec, number) alone.

    Args:
        spec: of the run.
        weights: file of the released weights.
        folder: the release.
    """

    def __init__(self, spec: Spec, weights: StoragePath, folder: StoragePath) -> None:
        self._spec = spec
        self._weights = weights
        self._folder = folder
        self._progress = (0, 0)
        gpu = spec.resources.gpus_per_worker > 0
        self._device = torch.device("cuda" if gpu else "cpu")

    @cached_property
    def _images(self) -> ImageSampler:
        # Loaded by the first shard and not by the constructor, whose errors Ray reports as the
        # death of a process: damaged weights are an error of their own.
        return ImageSampler(self._spec, self._weights, self._device)

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
        return write_shard(self._folder, shard, of, pngs, class_names=self._spec.data.classes)


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
    schedule, made = ShardSchedule(shards), 0
    pool = ActorPool(
        ShardSampler, spec, weights, folder, num_cpus=1, num_gpus=spec.resources.gpus_per_worker
    )
    idle: list[int] = []
    try:
        while not schedule.finished:
            while len(pool) < min(_room(spec), len(schedule.open_shards)):
                pool.start()
            _assign(schedule, pool, idle, of)
            for end in pool.wait(_SECONDS):
                if entry := _settle(schedule, pool, idle, end):
                    on_shard(entry)
                    made += entry.rows
            for actor in schedule.take_back():
                pool.dismiss(actor)
            partly = dict(sorted(pool.progress().values()))
            on_images(made + sum(partly.get(number, 0) for number in schedule.open_shards))
    finally:
        pool.dismiss_all()


def _assign(schedule: ShardSchedule, pool: ActorPool, idle: list[int], of: int) -> None:
    """Give every idle actor what the schedule has for it."""
    for actor in list(idle):
        if shard := schedule.take(actor, monotonic()):
            idle.remove(actor)
            pool.call(actor, "make", shard, of)


def _settle(
    schedule: ShardSchedule, pool: ActorPool, idle: list[int], end: Finished
) -> ShardEntry | None:
    """Note the end of a call; return the entry of a shard that was made for the first time.

    Raises:
        UmbraError: as the actor raised it, or too many died.
    """
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
