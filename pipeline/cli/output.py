"""What commands print: data on standard output, as JSON or as tables for a person."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON and nothing else on standard output."
)

# What figures of several runs on one data set mean.
WHAT_HOLDS = (
    "Guaranteed is the declared (ε, δ), however runs were chosen. Spent and reserved are computed "
    "as if all runs had been planned in advance; what is still admitted is what is not used of the "
    "budget at its RDP order."
)

# A pipe has no edge, and what is cut into lines there cannot be searched or copied.
_FILE_WIDTH = 10_000


def emit(data: Any, as_json: bool, show: Callable[["Console"], None]) -> None:
    """Print `data` as JSON, or what `show` draws on a console (which obeys NO_COLOR)."""
    with ignore_closed_pipe():
        if as_json:
            text = json.dumps(_finite(data), indent=2, ensure_ascii=False, default=str)
            click.echo(text)
        else:
            show(_console())


@contextmanager
def ignore_closed_pipe() -> Iterator[None]:
    """End the block quietly when the reader of standard output closes the pipe."""
    # The command keeps its own exit code: a broken ledger is broken whoever reads about it.
    try:
        yield
    except BrokenPipeError:
        silence_output()


def silence_output() -> None:
    """Redirect standard output to nowhere, so that flushing it at exit cannot fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def printable(text: str) -> str:
    """Replace characters that could control a terminal."""
    # The text may come from strangers: a class name, a cluster's message.
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def show_help(context: click.Context) -> None:
    """Print the help of a group that was called without a command, as bad usage."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    numbers: Sequence[int] = (),
) -> "Table":
    """Return a table; the columns in `numbers` are aligned right, None is shown as a dash."""
    from rich import box
    from rich.table import Table

    drawn = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="right" if index in numbers else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*("–" if cell is None else str(cell) for cell in row))
    return drawn


def attack_line(curve: Mapping[str, Any]) -> str:
    """Return what an attacker could do at most, a trade-off curve's record, in a line."""
    bound = "none" if curve["gdp_mu"] is None else f"{curve['gdp_mu']:.4g}"
    return f"{curve['meaning']} (Gaussian DP: μ = {bound}; {curve['method']})"


def pairs(title: str, facts: Mapping[str, object]) -> "Text":
    """Return names and values, one a line; paths are never broken, so that they can be copied."""
    from rich.text import Text

    width = max(map(len, facts), default=0)
    drawn = Text(no_wrap=True, overflow="ignore")
    drawn.append(f"{title}\n", style="italic")
    for name, value in facts.items():
        drawn.append(f"  {name:<{width}}  ", style="dim").append(f"{value}\n")
    return drawn


def _console() -> "Console":
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process with code 1

    # Names and paths are text: "[red]" or ":dog:" in them is neither a style nor a picture.
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False, "emoji": False}
    console = PipeConsole(**plain)
    return console if console.is_terminal else PipeConsole(**plain, width=_FILE_WIDTH)


def _finite(data: Any) -> Any:
    # JSON has no infinity and no NaN: such numbers become null.
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data
