"""Interleaved timing: each round runs all cases, so that disturbances affect all of them alike."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

# A sample this long is far above the clock's resolution and a scheduler's delay.
_SAMPLE_SECONDS = 0.02
_MAX_CALLS = 10_000
# A median needs three rounds; after so many it hardly moves.
_MIN_ROUNDS, _MAX_ROUNDS = 3, 30

_MAX_SIZE = 1024

Clock = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
        name: shown in the table.
        run: runs it once.
        weight: factor of its time: B/n where n records stand for B.
        peer: name of the case that does the same with another library, if any.
    """

    name: str
    run: Callable[[], object]
    weight: float = 1.0
    peer: str | None = None


@dataclass(frozen=True)
class Ratio:
    """Quotients of two cases, one for each round: median, minimum and maximum."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, case: Sequence[float], base: Sequence[float]) -> "Ratio":
        """Divide round by round, since both times of a round saw the same disturbances."""
        quotients = [a / b for a, b in zip(case, base, strict=True)]
        return cls(statistics.median(quotients), min(quotients), max(quotients))


def interleave(
    cases: Sequence[Case],
    seconds: float,
    clock: Clock = time.perf_counter,
    sample_seconds: float = _SAMPLE_SECONDS,
) -> dict[str, list[float]]:
    """Time all cases in turns for about `seconds`, and return seconds (times weight) by name.

    Each case is warmed up first. A short one is repeated until it fills `sample_seconds`, and the
    mean of these calls is one sample. There are at least three rounds. Their order rotates, so
    that no case always follows the same one.
    """
    calls = {case.name: _calls(case, clock, sample_seconds) for case in cases}
    samples: dict[str, list[float]] = {case.name: [] for case in cases}
    start = clock()
    for number in range(_MAX_ROUNDS):
        if number >= _MIN_ROUNDS and clock() - start >= seconds:
            break
        first = number % len(cases)
        for case in [*cases[first:], *cases[:first]]:
            taken = _seconds(case, calls[case.name], clock)
            samples[case.name].append(taken / calls[case.name] * case.weight)
    return samples


def fastest(cases: Sequence[Case], clock: Clock = time.perf_counter) -> Case:
    """Return the case with the shortest of two runs, taken in turns."""
    if len(cases) == 1:
        return cases[0]
    rounds = [[_seconds(case, 1, clock) for case in cases] for _ in range(2)]
    best = [min(taken) for taken in zip(*rounds, strict=True)]
    return cases[best.index(min(best))]


def size_for(seconds: float, run: Callable[[int], object], clock: Clock = time.perf_counter) -> int:
    """Return the smallest power of two for which `run` takes `seconds`, at most `_MAX_SIZE`."""
    size = 1
    while size < _MAX_SIZE:
        case = Case("", partial(run, size))
        if min(_seconds(case, 1, clock) for _ in range(3)) >= seconds:
            break
        size *= 2
    return size


def _calls(case: Case, clock: Clock, sample_seconds: float) -> int:
    first = _seconds(case, 1, clock)  # builds kernels and takes memory
    if first >= 10 * sample_seconds:
        return 1
    once = max(_seconds(case, 1, clock), sample_seconds / _MAX_CALLS)
    return max(1, round(sample_seconds / once))


def _seconds(case: Case, calls: int, clock: Clock) -> float:
    _wait()
    start = clock()
    for _ in range(calls):
        case.run()
    _wait()
    return clock() - start


def _wait() -> None:
    """Wait for a GPU, whose calls return before the work is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
