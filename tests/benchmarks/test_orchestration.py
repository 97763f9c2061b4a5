"""The arithmetic of the orchestration's share, on made-up times."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from benchmarks import machine, orchestrated, plot, table
from benchmarks import orchestration as subject


def _ends(gaps):
    ends, now = [100.0], 100.0
    for gap in gaps:
        now += gap
        ends.append(now)
    return tuple(ends)


@pytest.fixture
def measured(monkeypatch):
    """Rounds of bare steps of 500, 400, 600 and 500 ms, and 1, 2, 1 and 2 % more in the run.

    Where a block begins the run waits for three seconds and pays 50 ms.
    """
    monkeypatch.setattr(subject, "cores", lambda: 4)
    monkeypatch.setattr(subject, "_BLOCK", 5)
    bare, run = [], []
    for step, more in ((0.5, 1.01), (0.4, 1.02), (0.6, 1.01), (0.5, 1.02)):
        bare += [3 + step, *[step] * 4]
        run += [3 + step * more + 0.05, *[step * more] * 4]
    bare_loop = subject.Timed(_ends(bare[1:]), (3.0,) * 4)
    timed = subject.Timed(_ends(run[1:]), (3.0,) * 4, other_stages=7.0, others_cpu=0.02)
    seconds = sum(run[1:]) + 3.0 + 7.0 + 6.0 + 25.0
    bare_begun = bare_loop.steps[0] - 3.0 - 6.0
    return subject.compared(90, bare_loop, timed, bare_begun, seconds)


def test_blocks_are_told_from_steps():
    times = _ends([1, 2, 9, 3, 4, 8, 5, 6])  # the ends of steps 0 to 8, in blocks of three
    assert subject.split(times, 3) == ([[1, 2], [3, 4], [5, 6]], [9, 8])
    assert subject.split(times, 9) == ([[1, 2, 9, 3, 4, 8, 5, 6]], [])


def test_what_a_step_costs_more(measured):
    of_blocks = 0.05 / 50 / 0.5
    assert (measured.steps, measured.block) == (20, 50)
    assert measured.bare_step == pytest.approx(0.5)
    assert measured.block_cost == pytest.approx(0.05)
    assert measured.of_blocks == pytest.approx(of_blocks)
    clock = measured.by_wall_clock()
    expected = [0.015 + of_blocks, 0.01 + of_blocks, 0.02 + of_blocks]
    assert [clock.median, clock.low, clock.high] == pytest.approx(expected)
    assert measured.by_cpu_time() == pytest.approx(of_blocks + 0.02 / 4)


def test_what_a_run_costs_once_is_none_of_its_steps_and_waiting(measured):
    assert measured.fixed == pytest.approx(25.0)


def test_the_share_of_a_run(measured):
    # 1000 steps of 500 ms, 1 % more each, and 25 s: 30 of 530 s.
    assert measured.share(0.01, 1000) == pytest.approx(30 / 530)
    assert measured.share(0.0, 10**9) == pytest.approx(0, abs=1e-6)
    assert measured.to_dict()["shares"]["wall"]["1000"] > 0.05


def test_from_how_many_steps_on_the_share_is_small(measured):
    steps = measured.steps_below(0.01, 0.03)
    assert measured.share(0.01, steps) <= 0.03 < measured.share(0.01, steps - 1)
    assert measured.steps_below(0.05, 0.03) is None


def test_the_batch_is_scaled_to_a_quarter_of_a_second():
    for step, batch in (
        (0.125, 2 * subject._TRIAL_RECORDS),
        (1000.0, 1),
        (1e-6, subject.SMALL.dataset),
    ):
        trial = subject.Timed(_ends([step] * 5 + [99.0]))
        assert subject.calibrated(trial) == batch


def test_the_bare_loop_takes_every_step(tmp_path):
    timed = orchestrated.trial(orchestrated.spec_of(8, 4, 2), tmp_path)
    assert len(timed.steps) == 4
    assert list(timed.steps) == sorted(timed.steps)
    assert timed.waited == ()


def test_the_bare_loop_takes_turns(tmp_path):
    other = orchestrated.Turns(tmp_path, 1)

    def take_turns():
        for _ in range(6):
            other.give()
            other.take()

    with ThreadPoolExecutor() as pool:
        turns = pool.submit(take_turns)
        # Of a training of so few steps a block is one step: a fiftieth of it, but no less.
        timed = orchestrated.bare(orchestrated.spec_of(8, 6, 2), tmp_path)
        turns.result(timeout=60)
    assert len(timed.steps) == 6
    assert len(timed.waited) == len(other.waited) == 6


def test_a_turn_that_never_comes_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.turns._TIMEOUT", 0.01)
    with pytest.raises(TimeoutError):
        orchestrated.Turns(tmp_path, 0).take()


def test_the_watch_knows_what_other_processes_took(tmp_path):
    # The worker is 1; from the second to the fourth second the others took 0.2 s.
    readings = [(2.0, {1: 5.0, 2: 1.0}), (4.0, {1: 7.0, 2: 1.1, 3: 0.1}), (9.0, {1: 7.0, 2: 50.0})]
    watch = orchestrated._Watch(tmp_path, times=[1.0, 8.0], _cpu=readings)
    assert watch.others_cpu() == pytest.approx(0.1)
    # Of them 0.05 s to charge; what was charged before or after is in neither reading.
    assert watch.others_cpu([(1.9, 9.0), (3.0, 0.05), (4.1, 9.0)]) == pytest.approx(0.075)
    assert orchestrated._Watch(tmp_path, times=[1.0, 3.0], _cpu=readings).others_cpu() is None


def test_the_costs_are_shown_and_drawn(measured, tmp_path):
    console = Console(width=110)
    with console.capture() as shown:
        console.print(table.render_orchestration([measured]))
    assert "50.0 ms" in shown.get()  # the cost of a block
    kinds = {"sections": [], "rates": [], "memory": [], "curves": []}
    report = {"machine": machine.describe(), "load after": 0.0} | kinds
    plot.draw(report | {"orchestration": [measured.to_dict()]}, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
