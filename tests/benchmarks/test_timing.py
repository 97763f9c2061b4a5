"""The helpers of the benchmark; nothing here reads a real clock."""

import json

import pytest
from rich.console import Console

from benchmarks import table, timing


class Machine:
    """A clock that only work moves, and a log of what ran."""

    def __init__(self):
        self.now, self.ran = 0.0, []

    def clock(self):
        return self.now

    def work(self, name, seconds):
        def run():
            self.ran.append(name)
            self.now += seconds

        return run


def test_rounds_are_interleaved_and_noise_hits_all_alike():
    machine = Machine()
    cases = [
        timing.Case("base", machine.work("base", 1.0)),
        timing.Case("twice", machine.work("twice", 2.0)),
        timing.Case("scaled", machine.work("scaled", 0.5), weight=10.0),
    ]
    seconds = timing.interleave(cases, seconds=10.0, clock=machine.clock, sample_seconds=0.02)
    assert machine.ran[:3] == ["base", "twice", "scaled"]  # the warm-up
    assert machine.ran[3:] == [
        *("base", "twice", "scaled"),
        *("twice", "scaled", "base"),
        *("scaled", "base", "twice"),
    ]
    assert seconds == {"base": [1.0] * 3, "twice": [2.0] * 3, "scaled": [5.0] * 3}


def test_short_cases_are_repeated_within_a_sample_and_counted_once():
    machine = Machine()
    short = timing.Case("short", machine.work("short", 0.001))
    seconds = timing.interleave([short], seconds=0.0, clock=machine.clock, sample_seconds=0.02)
    assert len(machine.ran) == 2 + 3 * 20
    assert seconds["short"] == pytest.approx([0.001] * 3)


def test_ratios_are_taken_round_by_round():
    # The machine slows down by 1, 10, 4: the quotients do not, but those of medians would.
    base, case = [1.0, 10.0, 4.0], [3.0, 30.0, 8.0]
    assert timing.Ratio.of(case, base) == timing.Ratio(3.0, 2.0, 3.0)
    cases = [timing.Case("limit", list), timing.Case("way", list, peer="limit")]
    result = table.Result.of("Steps", cases, {"limit": base, "way": case}, ["a note"])
    assert [row.ratio.median for row in result.rows] == [1.0, 3.0]
    assert result.rows[1].peer_ratio == timing.Ratio(3.0, 2.0, 3.0)
    assert json.loads(json.dumps(result.to_dict()))["rows"][1]["ratio"]["median"] == 3.0
    console = Console(width=110)
    with console.capture() as capture:
        console.print(table.render(result))
    shown = capture.get()
    assert "2.00 to 3.00" in shown
    assert "a note" in shown


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 3), (8.0, 4), (1e9, 30)])
def test_rounds_are_bounded_by_time(seconds, rounds):
    machine = Machine()
    case = timing.Case("slow", machine.work("slow", 2.0))
    assert len(timing.interleave([case], seconds, machine.clock)["slow"]) == rounds


def test_the_size_is_the_first_power_of_two_that_takes_long_enough():
    machine = Machine()
    sizes = [
        timing.size_for(seconds, lambda n: machine.work("n", 0.1 * n)(), machine.clock)
        for seconds in (0.05, 0.5, 1e9)
    ]
    assert sizes == [1, 8, 1024]


def test_the_fastest_case_is_chosen():
    machine = Machine()
    cases = [timing.Case(str(t), machine.work(t, t)) for t in (3.0, 1.0, 2.0)]
    assert timing.fastest(cases, machine.clock).name == "1.0"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,234"), (99.4, "99.4"), (9.99, "10.0"), (1.0, "1.00"), (0.0123456, "0.0123")],
)
def test_numbers_have_three_digits(value, text):
    assert table.number(value) == text
