"""Ray actors that do one call at a time: a pool of them, and a group that works on one call.

Training is a group, which starts and fails as a whole; sampling is a pool, whose actors come and go
one by one. Both start, watch and dismiss their actors by `ActorPool`.
"""

import ctypes
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.cluster.calls import WorkerFailed, check_abort_conditions, get_result, wait
from privacy.errors import UmbraError

MAX_RESTARTS = 2  # of a group that failed; `umbra resume` may follow
_SECONDS = 2.0  # between two looks at a group's progress
_ERROR_SECONDS = 3.0  # for the cause of a failure to arrive after its consequences
_ROOM_SECONDS = 5.0  # for more workers of an elastic group, once the first has room

# <malloc.h>; older versions of glibc accept a threshold of at most 32 MiB.
_M_MMAP_THRESHOLD, _MMAP_THRESHOLD = -3, 32 * 1024**2
_M_TRIM_THRESHOLD, _TRIM_THRESHOLD = -1, 1024**3


@dataclass(frozen=True)
class Finished:
    """The end of one call.

    Attributes:
        actor: its number in the pool.
        started: whether the call was the actor's start, which has no result.
        result: what the call returned.
        error: what it raised; `WorkerDied` if the actor is gone.
    """

    actor: int
    started: bool = False
    result: Any = None
    error: UmbraError | None = None


class ActorPool:
    """Actors of one class, each with at most one call at a time beside `progress`.

    Args:
        kind: the actors' class; its method `progress()` returns at once.
        arguments: of its constructor.
        options: Ray's, for every actor: `num_cpus`, ...
    """

    def __init__(self, kind: type, *arguments: Any, **options: Any) -> None:
        # The second thread answers `progress` while the first works. Ray restarts no actor: to
        # replace one, and where there is room now, is the caller's decision.
        self._kind = ray.remote(max_concurrency=2, max_restarts=0, **options)(kind)
        self._arguments = arguments
        self._numbers = count()
        self._actors: dict[int, Any] = {}
        self._starting: dict[Any, int] = {}
        self._working: dict[Any, int] = {}
        self._requested: dict[Any, int] = {}
        self._progress: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._actors)

    @property
    def busy(self) -> bool:
        """Whether an actor starts or works."""
        return bool(self._starting or self._working)

    def start(self, **options: Any) -> int:
        """Start an actor and return its number; without room it starts when there is some."""
        number = next(self._numbers)
        self._actors[number] = self._kind.options(**options).remote(*self._arguments)
        self._starting[self._actors[number].progress.remote()] = number
        return number

    def call(self, actor: int, method: str, *arguments: Any) -> Any:
        """Call a method of an actor and return the result's reference; `wait` returns its end."""
        reference = getattr(self._actors[actor], method).remote(*arguments)
        self._working[reference] = actor
        return reference

    def wait(self, timeout: float) -> list[Finished]:
        """Wait for up to `timeout` seconds until a call ends; return those that have."""
        ready, _ = wait([*self._starting, *self._working], timeout)
        return [self._finished(reference) for reference in ready]

    def progress(self, actors: Sequence[int] | None = None) -> dict[int, Any]:
        """Return each actor's latest progress, and ask for the next; never waits for an actor."""
        if self._requested:
            ready, _ = ray.wait(list(self._requested), num_returns=len(self._requested), timeout=0)
            for reference in ready:
                actor = self._requested.pop(reference)
                with suppress(UmbraError):  # of an actor that died, `wait` returns the end
                    self._progress[actor] = get_result(reference)
        waiting = {*self._requested.values(), *self._starting.values()}
        for actor in self._actors if actors is None else actors:
            if actor in self._actors and actor not in waiting:
                self._requested[self._actors[actor].progress.remote()] = actor
        return dict(self._progress)

    def dismiss(self, actor: int) -> None:
        """End an actor, also one that is stuck, and forget its calls."""
        handle = self._actors.pop(actor)
        self._progress.pop(actor, None)
        for references in (self._starting, self._working, self._requested):
            for reference in [r for r, holder in references.items() if holder == actor]:
                del references[reference]
        with suppress(RayError):
            ray.kill(handle)

    def dismiss_all(self) -> None:
        """End all actors."""
        for actor in list(self._actors):
            self.dismiss(actor)

    def _finished(self, reference: Any) -> Finished:
        started = reference in self._starting
        actor = (self._starting if started else self._working).pop(reference)
        try:
            result = get_result(reference)
        except UmbraError as error:
            return Finished(actor, started, error=error)
        return Finished(actor, started, None if started else result)


@dataclass(frozen=True)
class ActorGroup:
    """Actors that work on one call together: as many as were asked for, or as there is room for.

    The class has the methods `rendezvous(size)` and `work(rank, size, address)`, which gets what
    `rendezvous` of rank 0 returned, and `progress()`, which rank 0 is asked for.

    Attributes:
        kind: the actors' class.
        arguments: of its constructor.
        each: what one actor holds of "CPU", "GPU" and "memory" (bytes).
        size: how many actors; None takes as many as there is room for at each start.
        at_most: the limit where `size` is None.
    """

    kind: type
    arguments: tuple[Any, ...]
    each: Mapping[str, float]
    size: int | None
    at_most: int = 1

    def run(self, on_progress: Callable[[Any], object]) -> None:
        """Run `work` to its end on all actors, and start all anew if it fails, at most twice.

        Args:
            on_progress: called every few seconds with what `progress()` returned.

        Raises:
            WorkerFailed: an actor died or failed in every one of the starts.
            UmbraError: as an actor raised it: it is meant for users and ends the group at once.
        """
        for restarts_left in reversed(range(MAX_RESTARTS + 1)):
            try:
                with self._started() as (pool, first):
                    while pool.busy:
                        for end in pool.wait(_SECONDS):
                            if end.error is not None:
                                raise _cause(pool, end.error)
                        if progress := pool.progress([first]):
                            on_progress(progress[first])
                    on_progress(get_result(pool.call(first, "progress")))
                    return
            except WorkerFailed:
                if not restarts_left:
                    raise

    @contextmanager
    def _started(self) -> Iterator[tuple[ActorPool, int]]:
        """Start the actors for the block and call `work`; yields them and the number of rank 0."""
        options = {"num_cpus": self.each["CPU"], "num_gpus": self.each.get("GPU", 0)}
        if "memory" in self.each:
            options["memory"] = self.each["memory"]
        with reserved_room(self.each, self.size, self.at_most) as places:
            pool = ActorPool(self.kind, *self.arguments, **options)
            try:
                ranks = [pool.start(scheduling_strategy=place) for place in places]
                # Ray hands the address to the others once rank 0 has returned it.
                address = pool.call(ranks[0], "rendezvous", len(ranks)) if len(ranks) > 1 else None
                for rank, actor in enumerate(ranks):
                    pool.call(actor, "work", rank, len(ranks), address)
                yield pool, ranks[0]
            finally:
                pool.dismiss_all()


def _cause(pool: ActorPool, error: UmbraError) -> UmbraError:
    """Return the cause of a group's failure: others fail of losing touch with the one that did."""
    errors, end = [error], monotonic() + _ERROR_SECONDS
    while isinstance(errors[-1], WorkerFailed) and pool.busy and (left := end - monotonic()) > 0:
        errors += [more.error for more in pool.wait(left) if more.error is not None]
    meant_for_users = [error for error in errors if not isinstance(error, WorkerFailed)]
    return (meant_for_users or errors)[0]


@contextmanager
def reserved_room(
    each: Mapping[str, float], size: int | None, at_most: int
) -> Iterator[list[PlacementGroupSchedulingStrategy]]:
    """Reserve room for workers for the block; wait until there is enough.

    Args:
        each: what one worker holds, in Ray's names.
        size: how many workers, which get their room together or not at all, so that two runs
            cannot hold half of it each; None takes what there is room for, at least one.
        at_most: the limit where `size` is None.

    Yields:
        A place for each worker.
    """
    bundle, groups = dict(each), []
    try:
        if size is not None:
            groups.append(placement_group([bundle] * size, strategy="PACK"))
            while not groups[0].wait(1):
                check_abort_conditions()
            ready, bundles = groups, size
        else:
            groups += [placement_group([bundle]) for _ in range(min(at_most, _capacity(each)))]
            ready, bundles = _wait_for_some(groups), 1
        yield [_place(group, index) for group in ready for index in range(bundles)]
    finally:
        for group in groups:
            with suppress(RayError):
                remove_placement_group(group)


def _place(group: PlacementGroup, index: int) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)


def _wait_for_some(groups: list[PlacementGroup]) -> list[PlacementGroup]:
    """Return the groups that have room a few seconds after the first has; remove the others."""
    ready: list[PlacementGroup] = []
    end: float | None = None
    while len(ready) < len(groups) and (end is None or monotonic() < end):
        check_abort_conditions()
        ready += [group for group in groups if group not in ready and group.wait(0.1)]
        if ready and end is None:
            end = monotonic() + _ROOM_SECONDS
    for group in groups:
        if group not in ready:
            remove_placement_group(group)
    return ready


def _capacity(each: Mapping[str, float]) -> int:
    """Return how many workers the cluster's machines could hold if they were idle, at least one."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = (min(int(has.get(kind, 0) // size) for kind, size in each.items()) for has in alive)
    return max(1, sum(fits))


def open_rendezvous() -> tuple[socket.socket, str, int]:
    """Open a socket at which the workers of a group meet, and return it, its host and its port.

    It listens on the interface that the cluster uses and on no other: sums cross the network
    between the workers, and nobody else may take part.
    """
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.create_server((host, 0), family=family)
    return server, host, server.getsockname()[1]


def tune_malloc() -> None:
    """Have this process keep up to 1 GiB of what it frees, where its C library is glibc.

    By default glibc returns feature maps of a megabyte at once, and the system clears new pages for
    the next: at 8x8 a tenth to a fifth of the time of sampling and of training. A process never
    holds more than it did at its peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
