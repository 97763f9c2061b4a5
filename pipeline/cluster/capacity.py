"""Whether there is room for what a spec asks for: Ray would wait for ever for what never comes."""

import os
from collections.abc import Mapping

from pipeline.spec.sections import Resources
from privacy.errors import UmbraError

_GIB = 1024**3


def require_room(resources: Resources, there: Mapping[str, float]) -> None:
    """Refuse training workers that have no room beside each other; "auto" needs room for one.

    Args:
        resources: what the spec asks for.
        there: how much there is of "CPU", "GPU" and "memory" (bytes), as Ray counts; what is not
            in it is not checked.

    Raises:
        UmbraError: there is too little of something.
    """
    each = per_worker(resources)
    workers = 1 if resources.workers == "auto" else resources.workers
    for kind in each.keys() & there.keys():
        wanted = workers * each[kind]
        if wanted > there[kind]:
            unit, scale = ("GiB of memory", _GIB) if kind == "memory" else (f"{kind}s", 1)
            raise UmbraError(
                f"resources asks for {workers} training workers with "
                f"{each[kind] / scale:g} {unit} each, {wanted / scale:g} in all, and this machine "
                f"has {there[kind] / scale:.3g}. Ask for less, or run on a Ray cluster that has as "
                "much, with --address"
            )


def per_worker(resources: Resources) -> dict[str, float]:
    """Return what one training worker holds, in Ray's names and units."""
    each: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        each["GPU"] = resources.gpus_per_worker
    if resources.memory_gib_per_worker:
        each["memory"] = resources.memory_gib_per_worker * _GIB
    return each


def this_machine() -> dict[str, float]:
    """Return how many processors and GPUs an embedded cluster could have, without starting one."""
    import torch

    return {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
