"""Which shard goes to which sampling actor: each is made once, whatever actors die or are slow.

Bookkeeping without Ray or a clock: `sampling.py` passes in the time and what happened.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from privacy.errors import UmbraError
from synth.data.shards import Shard

# A shard whose actor died so often kills them, by its size or by what it is.
MAX_DEATHS_PER_SHARD = 4
# Actors in a row that died before they made anything: the next would, too.
MAX_STARTUP_FAILURES = 8
# A copy is begun of what takes this many times as long as shards of its size did.
SLOW = 1.5


@dataclass(frozen=True)
class _Work:
    shard: Shard
    begun: float


class ShardSchedule:
    """Hands out shards, takes back those of actors that died and doubles those that lag behind.

    An actor is known by a number. A shard that two make is the same rows twice (a function of
    weights, spec and number) in one atomic file, so the second costs time only: it ends unnoted.

    Args:
        shards: what is to be made.
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
        if work.shard.number not in self._open:
            return False
        self._open.remove(work.shard.number)
        return True

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
        if number not in self._numbers_at_work():
            # In front: the oldest work first, so that the end does not wait for it.
            self._waiting.appendleft(work.shard)

    def take_back(self) -> list[int]:
        """Free the actors whose shard another has made, and return them: end what they do."""
        overtaken = [a for a, work in self._working.items() if work.shard.number not in self._open]
        for actor in overtaken:
            del self._working[actor]
        return overtaken

    def _numbers_at_work(self) -> Counter[int]:
        return Counter(work.shard.number for work in self._working.values())

    def _straggler(self, now: float) -> Shard | None:
        """Return the shard that is the longest at work, if it is slow and has no second copy."""
        if not self._seconds_per_row:
            return None
        usual, copies = median(self._seconds_per_row), self._numbers_at_work()
        slow = [
            work
            for work in self._working.values()
            if work.shard.number in self._open
            and copies[work.shard.number] == 1
            and now - work.begun > SLOW * usual * len(work.shard.labels)
        ]
        return min(slow, key=lambda work: work.begun).shard if slow else None
