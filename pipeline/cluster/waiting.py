"""What a run waits for on a cluster that others use, in words.

Training workers are one placement group, which Ray gives room to as a whole or not at all, so two
runs cannot hold half of it each; the run that got none waits. Tasks and actors wait one by one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray

from pipeline.progress import run_periodically

_SECONDS = 3.0
_LIMIT = 1000


@contextmanager
def told_waiting(tell: Callable[[str], Any]) -> Iterator[None]:
    """Tell what this process's job waits for whenever that changes; "" while it has its room."""
    told = ""

    def look() -> None:
        nonlocal told
        # A cluster without a dashboard, or a busy one, tells nothing; the run goes on.
        with suppress(Exception):
            now = waiting()
            if now != told:
                tell(now)
                told = now

    try:
        with run_periodically(look, _SECONDS):
            yield
    finally:
        if told:
            tell("")


def waiting() -> str:
    """Return what the job that this process is the driver of waits for, or nothing."""
    from ray.util.state import list_actors, list_placement_groups, list_tasks

    job = ray.get_runtime_context().get_job_id()
    wants: dict[str, Any] = {"limit": _LIMIT, "detail": True, "raise_on_missing_output": False}
    pending = [("creator_job_id", "=", job), ("state", "=", "PENDING")]
    for group in list_placement_groups(filters=pending, **wants):
        bundles = [bundle["unit_resources"] for bundle in group.bundles]
        return _words(f"{len(bundles)} training workers", bundles[0])
    mine = ("job_id", "=", job)
    actors = [a for a in list_actors(filters=[mine], **wants) if _sizes(a.required_resources)]
    if stuck := _none_moves(actors, "PENDING_CREATION", "ALIVE"):
        return _words("workers", stuck.required_resources)
    tasks = [t for t in list_tasks(filters=[mine], **wants) if t.type == "NORMAL_TASK"]
    if stuck := _none_moves(tasks, "PENDING_NODE_ASSIGNMENT", "RUNNING"):
        return _words("tasks", stuck.required_resources)
    return ""


def _none_moves(members: list[Any], waits: str, moves: str) -> Any:
    """Return one that waits where none is at work, else None."""
    if any(member.state == moves for member in members):
        return None
    return next((member for member in members if member.state == waits), None)


def _words(what: str, each: Mapping[str, float]) -> str:
    free, there = ray.available_resources(), ray.cluster_resources()
    kinds = _sizes(each)
    asked = " and ".join(f"{size:g} {kind}" for kind, size in kinds.items())
    room = ", ".join(f"{free.get(k, 0):g} of {there.get(k, 0):g} {k}" for k in kinds)
    return f"it waits for room for {what} with {asked} each; {room} free on the cluster"


def _sizes(resources: Mapping[str, float] | None) -> dict[str, float]:
    """Return processors and GPUs alone: memory is in bytes, and the rest is Ray's own."""
    return {k: v for k, v in (resources or {}).items() if k in {"CPU", "GPU"} and v > 0}
