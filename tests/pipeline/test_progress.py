"""Progress on terminals and elsewhere."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from pipeline.progress import (
    BarProgress,
    LineProgress,
    Progress,
    SilentProgress,
    duration,
    show_progress,
)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_lines_come_at_most_every_few_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    with LineProgress(stream, every=5, clock=clock).stage("train", 400) as stage:
        for _ in range(160):
            clock.now += 0.125
            stage.advance()
    assert stream.getvalue().splitlines() == [
        "train: begun",
        "train: 40/400 (10 %), 45 s left",
        "train: 80/400 (20 %), 40 s left",
        "train: 120/400 (30 %), 35 s left",
        "train: 160/400 (40 %), 30 s left",
        "train: done in 20 s",
    ]


def test_time_left_is_by_proportion() -> None:
    clock, stream = Clock(), io.StringIO()
    with LineProgress(stream, every=5, clock=clock).stage("sample", 10) as stage:
        clock.now += 60
        stage.reach(4)
    assert stream.getvalue().splitlines()[1] == "sample: 4/10 (40 %), 1 min 30 s left"


def test_the_first_per_cent_gives_no_estimate() -> None:
    clock, stream = Clock(), io.StringIO()
    with LineProgress(stream, every=5, clock=clock).stage("train", 500) as stage:
        for done in (1, 5):
            clock.now += 6
            stage.reach(done)
    lines = stream.getvalue().splitlines()
    assert lines[1:3] == ["train: 1/500 (0 %)", "train: 5/500 (1 %), 20 min 00 s left"]


def test_without_a_total_the_count_is_shown() -> None:
    clock, stream = Clock(), io.StringIO()
    with LineProgress(stream, every=5, clock=clock).stage("ingest") as stage:
        clock.now += 6
        stage.advance(1200)
    assert stream.getvalue().splitlines()[1] == "ingest: 1200, 6 s so far"


def test_polled_counts_never_go_back() -> None:
    clock, stream = Clock(), io.StringIO()
    with LineProgress(stream, every=1, clock=clock).stage("sample", 10) as stage:
        for done in (4, 2, 4):
            clock.now += 2
            stage.reach(done)
    assert stream.getvalue().count("4/10") == 3


def test_failed_stage_is_stopped_without_its_reason() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), LineProgress(stream).stage("train", 3):
        raise ValueError("loss 0.731")
    assert "stopped" in stream.getvalue()
    assert "done" not in stream.getvalue()
    assert "0.731" not in stream.getvalue()


def test_not_a_terminal_gets_lines_without_escapes(plain_environment: None) -> None:
    stream = io.StringIO()
    progress = show_progress(stream)
    assert isinstance(progress, LineProgress)
    with progress.stage("plan", 1) as stage:
        stage.advance()
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_dumb_terminal_gets_lines(plain_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(show_progress(Terminal()), LineProgress)


def test_terminal_gets_a_bar_with_count_and_name(plain_environment: None) -> None:
    stream = Terminal()
    progress = show_progress(stream)
    assert isinstance(progress, BarProgress)
    with progress.stage("train", 400) as stage:
        stage.advance(400)
    assert "train" in stream.getvalue()
    assert "400/400" in stream.getvalue()
    assert "\x1b[3" in stream.getvalue()


def test_no_color_is_obeyed(plain_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with show_progress(stream).stage("train", 2) as stage:
        stage.advance(2)
    assert "2/2" in stream.getvalue()
    colours = [f"\x1b[{code}" for code in ("31", "32", "35", "36", "38;")]
    assert not [code for code in colours if code in stream.getvalue()]


def test_stages_one_after_another_and_nested(plain_environment: None) -> None:
    stream = Terminal()
    progress = BarProgress(Console(file=stream, force_terminal=True, width=100))
    with progress.stage("outer", 2) as outer, progress.stage("inner", 3) as inner:
        inner.reach(3)
        outer.advance(2)
    with progress.stage("next") as last:
        last.advance(5)
    final = stream.getvalue()
    assert "outer" in final
    assert "3/3" in final
    assert "5/5" in final


def test_failed_bar_is_not_filled_and_the_next_one_works(plain_environment: None) -> None:
    stream = Terminal()
    progress = BarProgress(Console(file=stream, force_terminal=True, width=100))
    with pytest.raises(RuntimeError), progress.stage("train", 9) as stage:
        stage.advance(2)
        raise RuntimeError
    assert "9/9" not in stream.getvalue()
    with progress.stage("again", 1):
        pass
    assert "1/1" in stream.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        SilentProgress,
        lambda: LineProgress(io.StringIO()),
        lambda: BarProgress(Console(file=Terminal(), force_terminal=True)),
    ],
)
def test_every_kind_keeps_the_contract(make: Callable[[], Progress]) -> None:
    progress = make()
    for total in (None, 0, 5):
        with progress.stage("[red]a\x1b[2Jb[/]", total) as stage:
            stage.advance()
            stage.advance(2)
            stage.reach(1)


@pytest.mark.parametrize("kind", ["bar", "line"])
def test_hostile_names_reach_no_terminal(kind: str, plain_environment: None) -> None:
    stream = Terminal()
    progress: Progress = (
        BarProgress(Console(file=stream, force_terminal=True, width=120))
        if kind == "bar"
        else LineProgress(stream)
    )
    with progress.stage("[red]x\x1b[2Jy\n", 1):
        pass
    assert "\x1b[2J" not in stream.getvalue()
    assert "[red]x[2Jy" in stream.getvalue()


def test_silent_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with SilentProgress().stage("train", 3) as stage:
        stage.advance(3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "under 1 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (12000, "3 h 20 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
