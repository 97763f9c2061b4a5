"""Sampling on Ray actors: each holds the weights and makes whole shards."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors.torch import load_file

from pipeline.building import build_denoiser, build_guided, build_sampler
from pipeline.cluster.calls import answer
from pipeline.spec import Spec
from privacy.errors import IntegrityBroken
from synth.manifest import ShardEntry
from synth.samplers import Denoise
from synth.shards import Shard, shard_generator, to_uint8, write_shard

_RESTARTS = 3


class ShardSampler:
    """Makes shards of one run; a shard is a function of (weights, spec, number) alone."""

    def __init__(self, spec: Spec, weights: Path, folder: Path) -> None:
        self._spec = spec
        self._weights = weights
        self._folder = folder
        gpu = spec.resources.gpus_per_worker > 0
        self._device = torch.device("cuda" if gpu else "cpu")
        self._sampler = build_sampler(spec)

    @cached_property
    def _denoise(self) -> Denoise:
        # Loaded by the first shard and not with the actor, or damaged weights would arrive as the
        # death of a process.
        denoiser = build_denoiser(self._spec)
        try:
            denoiser.load_state_dict(load_file(self._weights))
        except Exception as error:
            raise IntegrityBroken(
                f"{self._weights} is missing, damaged or of another network; restore it from a "
                "backup or submit a new run"
            ) from error
        return build_guided(self._spec, denoiser.to(self._device).eval())

    def make(self, shard: Shard, of: int) -> ShardEntry:
        """Sample the shard's images and write them."""
        # One thread: sums in another order would change last bits, and a shard's bytes with them.
        torch.set_num_threads(1)
        data, synthesize = self._spec.data, self._spec.synthesize
        generator = shard_generator(synthesize.seed, shard.number, self._device)
        labels = torch.tensor(shard.labels)
        shape = (data.channels, data.size, data.size)
        with torch.inference_mode():
            parts = [
                self._sampler.sample(self._denoise, part.to(self._device), shape, generator)
                for part in labels.split(synthesize.batch)
            ]
        return write_shard(
            self._folder,
            shard,
            of,
            to_uint8(torch.cat(parts)),
            labels.numpy(),
            class_names=data.classes,
        )


def make_shards(
    spec: Spec,
    weights: Path,
    folder: Path,
    shards: list[Shard],
    of: int,
    on_shard: Callable[[ShardEntry], None],
) -> None:
    """Make the given shards of `of` on as many actors as the spec and the cluster allow.

    A task whose actor died is done again by a fresh one.

    Raises:
        UmbraError: as a worker raised it.
    """
    gpus = spec.resources.gpus_per_worker
    actor = ray.remote(ShardSampler).options(
        num_cpus=1, num_gpus=gpus, max_restarts=_RESTARTS, max_task_retries=_RESTARTS
    )
    count = min(_actors(spec), len(shards))
    idle: list[Any] = [actor.remote(spec, weights, folder) for _ in range(count)]
    waiting = list(reversed(shards))
    working: dict[Any, Any] = {}
    while waiting or working:
        while waiting and idle:
            free = idle.pop()
            working[free.make.remote(waiting.pop(), of)] = free
        (done,), _ = ray.wait(list(working), num_returns=1)
        on_shard(answer(done))
        idle.append(working.pop(done))


def _actors(spec: Spec) -> int:
    """Return how many actors have room beside each other: one without would wait for ever."""
    kind, each = "CPU", 1.0
    if spec.resources.gpus_per_worker > 0:
        kind, each = "GPU", spec.resources.gpus_per_worker
    room = max(1, int(ray.cluster_resources().get(kind, 1) / each))
    wanted = spec.resources.sampling_actors
    return room if wanted == "auto" else min(room, wanted)
