"""What commands print: data on standard output, as JSON or as tables that a person reads."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON and nothing else on standard output."
)


def emit(data: Any, as_json: bool, show: Callable[[Console], None]) -> None:
    """Print `data` as JSON, or what `show` draws on a console (which obeys NO_COLOR)."""
    if as_json:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False, default=str))
    else:
        show(Console(highlight=False, soft_wrap=True))


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    numbers: Sequence[int] = (),
) -> Table:
    """Return a table; the columns in `numbers` are set flush right."""
    drawn = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="right" if index in numbers else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    return drawn


def pairs(title: str, facts: Mapping[str, object]) -> Text:
    """Return names and values, one a line; paths are never broken, so that they can be copied."""
    width = max(map(len, facts), default=0)
    drawn = Text(no_wrap=True, overflow="ignore")
    drawn.append(f"{title}\n", style="italic")
    for name, value in facts.items():
        drawn.append(f"  {name:<{width}}  ", style="dim").append(f"{value}\n")
    return drawn
