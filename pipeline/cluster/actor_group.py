"""Pools of Ray actors, which come and go one by one, and groups, which start and fail together."""

import ctypes
import math
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.cluster import calls
from privacy.errors import UmbraError

MAX_RESTARTS = 2  # of a group that failed; `umbra resume` may follow
# That an interrupted group has to end by itself: Ray and Kubernetes kill a process after 30.
STOP_SECONDS = 20.0
_SECONDS = 2.0  # between two reports of a group's progress
_PROGRESS_SECONDS = 0.5  # an actor that reports nothing for so long is stuck or busy
_ERROR_SECONDS = 3.0  # for the cause of a failure to arrive after its consequences
_ROOM_SECONDS = 5.0  # for more workers of an elastic group, once the first has room

# <malloc.h>; older versions of glibc accept a threshold of at most 32 MiB.
_M_MMAP_THRESHOLD, _MMAP_THRESHOLD = -3, 32 * 1024**2
_M_TRIM_THRESHOLD, _TRIM_THRESHOLD = -1, 1024**3


@dataclass(frozen=True)
class Finished:
    """The end of an actor's start (`started`), or of a call: its result, or its error."""

    actor: int
    started: bool
    result: Any = None
    error: UmbraError | None = None


class ActorPool:
    """Actors of one class, each with at most one call at a time beside `progress`, a method of it.

    `options` are Ray's, for every actor: `num_cpus`, ...
    """

    def __init__(self, kind: type, *arguments: Any, **options: Any) -> None:
        # The second thread answers `progress` while the first works. Ray restarts no actor: to
        # replace one, and where there is room now, is the caller's decision.
        self._kind = ray.remote(max_concurrency=2, max_restarts=0, **options)(kind)
        self._arguments = arguments
        self._begun = 0
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, tuple[int, bool]] = {}  # reference: actor, whether its start

    def __len__(self) -> int:
        return len(self._actors)

    @property
    def pending(self) -> list[Any]:
        """References of all starts and calls that have not ended."""
        return list(self._calls)

    @property
    def working(self) -> bool:
        """Whether a call has not ended, starts apart."""
        return not all(starting for _, starting in self._calls.values())

    def start(self, **options: Any) -> int:
        """Start an actor and return its number; without room it starts when there is some."""
        self._begun = number = self._begun + 1
        self._actors[number] = self._kind.options(**options).remote(*self._arguments)
        self._calls[self._actors[number].progress.remote()] = (number, True)
        return number

    def call(self, actor: int, method: str, *arguments: Any) -> Any:
        """Call a method of an actor and return the result's reference, which is now pending."""
        reference = getattr(self._actors[actor], method).remote(*arguments)
        self._calls[reference] = (actor, False)
        return reference

    def ended(self, references: Sequence[Any]) -> list[Finished]:
        """Return the ends of pending starts and calls, which `wait` has returned."""
        return [self._end(reference) for reference in references]

    def _end(self, reference: Any) -> Finished:
        actor, started = self._calls.pop(reference)
        try:
            return Finished(actor, started, result=calls.get_result(reference))
        except UmbraError as error:
            return Finished(actor, started, error=error)

    def progress(self) -> dict[int, Any]:
        """Return the progress of the actors that have started; those that are stuck are missing."""
        starting = {actor for actor, is_start in self._calls.values() if is_start}
        started = self._actors.keys() - starting
        asked = {self._actors[actor].progress.remote(): actor for actor in started}
        found = {}
        if asked:
            ready, _ = ray.wait([*asked], num_returns=len(asked), timeout=_PROGRESS_SECONDS)
            for reference in ready:
                # The death of an actor ends a pending call, too.
                with suppress(UmbraError):
                    found[asked[reference]] = calls.get_result(reference)
        return found

    @property
    def busy(self) -> set[int]:
        """The actors that are starting or at work."""
        return {actor for actor, _ in self._calls.values()}

    def ask_to_stop(self, actor: int) -> None:
        """Call `stop` of an actor; what is at work in it ends as it sees fit."""
        self._actors[actor].stop.remote()

    def dismiss(self, actor: int) -> None:
        """End an actor, also one that is stuck, and forget its calls."""
        handle = self._actors.pop(actor)
        self._calls = {of: call for of, call in self._calls.items() if call[0] != actor}
        with suppress(ray.exceptions.RayError):
            ray.kill(handle)

    def dismiss_all(self) -> None:
        """End all actors."""
        for actor in list(self._actors):
            self.dismiss(actor)


@dataclass(frozen=True)
class ActorGroup:
    """Actors that work on one call together: as many as were asked for, or as there is room for.

    The class has the methods `rendezvous(size)` and `work(rank, size, address)`, which gets what
    `rendezvous` of rank 0 returned; `progress()`, of which rank 0's is reported; and `stop()`,
    which is called while `work` is at work and has it raise an error soon.

    Attributes:
        name: of the work, for messages.
        kind: the actors' class.
        arguments: of its constructor.
        each: what one actor holds of "CPU", "GPU" and "memory" (bytes).
        size: how many actors; None takes as many as there is room for at each start.
        at_most: the limit where `size` is None.
    """

    name: str
    kind: type
    arguments: tuple[Any, ...]
    each: Mapping[str, float]
    size: int | None
    at_most: int = 1

    def run(self, on_progress: Callable[[Any], object]) -> None:
        """Run `work` to its end on all actors, and start all anew if it fails, at most twice.

        `on_progress` is called every few seconds with what `progress()` returned. An interrupt
        (KeyboardInterrupt) gives the actors time to stop by themselves; a second one does not.

        Raises:
            WorkerFailed: an actor died or failed in every one of the starts.
            UmbraError: as an actor raised it: it is meant for users and ends the group at once.
        """
        for restarts_left in reversed(range(MAX_RESTARTS + 1)):
            try:
                with self._started() as (pool, first):
                    try:
                        _watch(pool, first, on_progress)
                    except KeyboardInterrupt:
                        _stop(pool, first)
                        raise
                    return
            except calls.WorkerFailed as error:
                if not restarts_left:
                    raise calls.WorkerFailed(f"{self.name}: {error}") from None

    @contextmanager
    def _started(self) -> Iterator[tuple[ActorPool, int]]:
        """Start the actors for the block and call `work`; yield them and the number of rank 0."""
        names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
        options = {names[kind]: size for kind, size in self.each.items()}
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


def _watch(pool: ActorPool, first: int, on_progress: Callable[[Any], object]) -> None:
    """Wait until all work is done, reporting the progress of the actor `first` meanwhile."""
    while pending := pool.pending:
        ready, _ = calls.wait(pending, _SECONDS)
        for end in pool.ended(ready):
            if end.error is not None:
                raise _cause(pool, end.error)
        if (progress := pool.progress().get(first)) is not None:
            # A terminal that is gone must not end what is charged already.
            with suppress(OSError):
                on_progress(progress)
    with suppress(OSError):
        on_progress(calls.get_result(pool.call(first, "progress")))


def _stop(pool: ActorPool, first: int) -> None:
    """Ask the actor `first` to stop, and wait until its work has ended, but not for ever."""
    pool.ask_to_stop(first)
    end = monotonic() + STOP_SECONDS
    while first in pool.busy and (left := end - monotonic()) > 0:
        # That the others fail without it is to be expected.
        pool.ended(calls.wait(pool.pending, left)[0])


def _cause(pool: ActorPool, error: UmbraError) -> UmbraError:
    """Return the error that is meant for users, if one of the group arrives within seconds."""
    # An actor that lost touch with the one that failed fails, too, and may be heard of before it.
    end = monotonic() + _ERROR_SECONDS
    while isinstance(error, calls.WorkerFailed) and pool.pending and monotonic() < end:
        for other in pool.ended(calls.wait(pool.pending, end - monotonic())[0]):
            if other.error is not None and not isinstance(other.error, calls.WorkerFailed):
                return other.error
    return error


@contextmanager
def reserved_room(
    each: Mapping[str, float], size: int | None, at_most: int
) -> Iterator[list[PlacementGroupSchedulingStrategy]]:
    """Reserve room for workers for the block, and yield a place for each; see `ActorGroup`."""
    # A fixed number of workers get their room together or not at all: two runs cannot hold half of
    # it each.
    bundles, groups = (1, min(at_most, _capacity(each))) if size is None else (size, 1)
    asked = [placement_group([dict(each)] * bundles, strategy="PACK") for _ in range(groups)]
    try:
        with calls.waiting_for_room(f"training workers ({bundles})", each):
            ready = _wait_for_some(asked)
        yield [
            PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            for group in ready
            for index in range(bundles)
        ]
    finally:
        for group in asked:
            with suppress(ray.exceptions.RayError):
                remove_placement_group(group)


def _wait_for_some(groups: list[Any]) -> list[Any]:
    """Return the groups that have room a few seconds after the first has; remove the others."""
    ready, waiting, end = list[Any](), groups, math.inf
    while waiting and monotonic() < end:
        calls.check_abort_conditions()
        # Added up, because on a busy machine it may take longer to hear of one that is ready.
        ready += [group for group in waiting if group.wait(0.1)]
        waiting = [group for group in waiting if group not in ready]
        if ready:
            end = min(end, monotonic() + _ROOM_SECONDS)
    for group in waiting:
        remove_placement_group(group)
    return ready


def _capacity(each: Mapping[str, float]) -> int:
    """Return how many workers the cluster's machines could hold if they were idle, at least one."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = (min(int(has.get(kind, 0) // size) for kind, size in each.items()) for has in alive)
    return max(1, sum(fits))


def open_rendezvous() -> tuple[socket.socket, str, int]:
    """Open a socket at which the workers of a group meet, and return it, its host and its port."""
    # On the interface that the cluster uses and on no other: sums cross the network between the
    # workers, and nobody else may take part.
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.create_server((host, 0), family=family)
    return server, host, server.getsockname()[1]


def tune_malloc() -> None:
    """Have this process keep up to 1 GiB of what it frees, where its C library is glibc."""
    # By default glibc returns feature maps of a megabyte at once, and the system clears new pages
    # for the next: at 8x8 a tenth to a fifth of the time of sampling and of training. A process
    # never holds more than it did at its peak.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
