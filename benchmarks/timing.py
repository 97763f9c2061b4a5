"""Interleaved timing: every round runs all cases, so what disturbs the machine hits all alike."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# A sample this long is far above the clock's grain and a scheduler's hiccup.
_SAMPLE_SECONDS = 0.02
_MOST_CALLS = 10_000

Clock = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
        name: as it stands in the table.
        run: does it once.
        weight: its time counts so many times: B/n where B records are meant and n are run.
        peer: name of the case that does the same with another library, if any.
    """

    name: str
    run: Callable[[], object]
    weight: float = 1.0
    peer: str | None = None


@dataclass(frozen=True)
class Ratio:
    """Quotients of two cases, one a round: their median, least and greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, case: Sequence[float], base: Sequence[float]) -> "Ratio":
        """Divide round by round: both numbers of a quotient met the same noise."""
        quotients = [a / b for a, b in zip(case, base, strict=True)]
        return cls(statistics.median(quotients), min(quotients), max(quotients))


def interleave(
    cases: Sequence[Case],
    rounds: int,
    clock: Clock = time.perf_counter,
    sample_seconds: float = _SAMPLE_SECONDS,
) -> dict[str, list[float]]:
    """Time all cases `rounds` times, in turns, and return seconds (times weight) by name.

    Each case is warmed up first. A short one is called as often as fills `sample_seconds`, and
    the mean of these calls is one sample. The order turns by one place a round, so that no case
    always follows the same one.
    """
    calls = {case.name: _calls(case, clock, sample_seconds) for case in cases}
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for number in range(rounds):
        turn = number % len(cases)
        for case in [*cases[turn:], *cases[:turn]]:
            taken = _seconds(case, calls[case.name], clock)
            seconds[case.name].append(taken / calls[case.name] * case.weight)
    return seconds


def fastest(cases: Sequence[Case], clock: Clock = time.perf_counter) -> Case:
    """Return the case with the least time of three runs, in turns: every side at its best."""
    if len(cases) == 1:
        return cases[0]
    rounds = [[_seconds(case, 1, clock) for case in cases] for _ in range(3)]
    best = [min(taken) for taken in zip(*rounds, strict=True)]
    return cases[best.index(min(best))]


def _calls(case: Case, clock: Clock, sample_seconds: float) -> int:
    first = _seconds(case, 1, clock)  # builds kernels and takes memory
    if first >= 10 * sample_seconds:
        return 1
    once = max(_seconds(case, 1, clock), sample_seconds / _MOST_CALLS)
    return max(1, round(sample_seconds / once))


def _seconds(case: Case, calls: int, clock: Clock) -> float:
    _wait()
    start = clock()
    for _ in range(calls):
        case.run()
    _wait()
    return clock() - start


def _wait() -> None:
    """Wait until a GPU has done what it was told, which calls do not wait for."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
