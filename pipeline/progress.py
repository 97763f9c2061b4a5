"""Progress on standard error, one line a stage, with the time left.

Only public counts are shown: steps, shards, epochs. Losses, norms and batch sizes are private and
must not appear on a screen.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress


@contextmanager
def run_periodically(action: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call `action` every so many seconds while the block runs; the first time after as many.

    `action` must not raise: the error would end the calls and be printed to the terminal. The end
    of the block waits for a call in progress.
    """
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# Of a log. The time of a few steps tells how many records were in them.
SECONDS_BETWEEN_LINES = 30.0


@dataclass
class Stage:
    """A stage in progress: `show` is called with the units done so far."""

    show: Callable[[int], object]
    done: int = 0

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.reach(self.done + n)

    def reach(self, done: int) -> None:
        """Set the units done so far; a smaller number than before changes nothing."""
        # For drivers that poll: a worker's count may be read late or twice.
        self.done = max(self.done, done)
        self.show(self.done)


class Progress(Protocol):
    """A display of stages."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Stage]:
        """Show `name` while the block runs; `total` is None where it is unknown."""


def show_progress(stream: TextIO | None = None) -> Progress:
    """Return bars on a terminal, plain lines elsewhere (pipes, CI, TERM=dumb); obeys NO_COLOR."""
    from rich.console import Console

    stream = stream or sys.stderr
    console = Console(file=stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return BarProgress(console)
    return LineProgress(stream)


class SilentProgress:
    """Show nothing: for `--json`, tests and workers."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Show nothing."""
        yield Stage(lambda done: None)


@dataclass(frozen=True)
class Both:
    """Show every stage in two places: to a person, and in a log."""

    first: Progress
    second: Progress

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Show the stage in both."""
        with self.first.stage(name, total) as first, self.second.stage(name, total) as second:

            def show(done: int) -> None:
                first.reach(done)
                second.reach(done)

            yield Stage(show)


class BarProgress:
    """Bars for a terminal; finished stages keep their line."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._bars: RichProgress | None = None
        self._open = 0

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Show a bar; stages may be open at the same time, each on its line."""
        if self._bars is None:
            self._bars = _bars(self._console)
            self._bars.start()
        bars = self._bars
        self._open += 1
        task = bars.add_task(_plain(name), total=total)
        stage = Stage(lambda done: bars.update(task, completed=done))
        try:
            yield stage
            full = total or stage.done or 1
            bars.update(task, total=full, completed=full)
        finally:
            bars.stop_task(task)
            self._open -= 1
            if self._open == 0:
                bars.stop()
                self._bars = None


def _bars(console: "Console") -> "RichProgress":
    from rich import progress

    return progress.Progress(
        progress.SpinnerColumn(finished_text="[green]✓[/]"),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=32),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("[dim]left[/]"),
        progress.TimeRemainingColumn(compact=True),
        console=console,
    )


class LineProgress:
    """Plain lines for logs and pipes: begun, progress every few seconds, done.

    Args:
        stream: where lines go.
        every: the least time between two lines of a stage, in seconds.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        stream: TextIO,
        every: float = SECONDS_BETWEEN_LINES,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._stream = stream
        self._every = every
        self._clock = clock

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Write the stage's lines."""
        name, begun = _plain(name), self._clock()
        last = begun

        def show(done: int) -> None:
            nonlocal last
            now = self._clock()
            if now - last >= self._every:
                last = now
                self._write(f"{name}: {_state(done, total, now - begun)}")

        self._write(f"{name}: begun")
        try:
            yield Stage(show)
        except BaseException:
            self._write(f"{name}: stopped after {duration(coarse(self._clock() - begun))}")
            raise
        self._write(f"{name}: done in {duration(coarse(self._clock() - begun))}")

    def _write(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


def _state(done: int, total: int | None, elapsed: float) -> str:
    if not total:
        return f"{done}, {duration(elapsed)} so far"
    percent = 100 * done // total
    state = f"{done}/{total} ({percent} %)"
    # The first per cent is no estimate of the rest: starting takes its own time.
    if percent == 0 or done >= total:
        return state
    return f"{state}, {duration(coarse(elapsed * (total - done) / done))} left"


def coarse(seconds: float) -> float:
    """Round to two significant digits, for times that follow the sizes of private batches.

    >>> coarse(53.27), coarse(7261.0)
    (53.0, 7300.0)
    """
    return float(f"{seconds:.2g}")


def duration(seconds: float) -> str:
    """Format seconds for a person: `45 s`, `2 min 05 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 1:
        return "under 1 s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _plain(name: str) -> str:
    """Remove control characters from a name that comes from a spec."""
    return "".join(character for character in name if character.isprintable())
