"""`umbra budget`: declare what a data set may spend, and see what it has spent."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option, show_help, table
from pipeline.home import Home

if TYPE_CHECKING:
    from privacy.budget import Odometer


@click.group(invoke_without_command=True)
@click.pass_context
def budget(context: click.Context) -> None:
    """Declare and show the budgets of data sets."""
    show_help(context)


@budget.command()
@click.argument("name")
@click.option("--epsilon", type=float, required=True, help="ε over all runs on the data set.")
@click.option("--delta", type=float, required=True, help="The one δ of the data set, below 1/N.")
@json_option
def declare(name: str, epsilon: float, delta: float, as_json: bool) -> None:
    """Give the data set NAME its budget, once and for ever."""
    from pipeline.engine import open_ledger

    _, budgets = open_ledger(Home.locate().ensure())
    _emit([budgets.declare(name, epsilon, delta)], as_json)


@budget.command()
@json_option
def show(as_json: bool) -> None:
    """Show every data set's budget: spent, reserved and left; changes nothing."""
    from privacy.budget import Budget
    from privacy.ledger import Ledger

    home = Home.locate()
    if _is_new(home):
        _emit([], as_json)
        return
    _emit(list(Budget(Ledger.open(home.ledger_url)).show()), as_json)


def _is_new(home: Home) -> bool:
    """Return whether the home has neither a ledger nor a key: nothing was ever declared here."""
    local = home.ledger_url.startswith("sqlite:")
    return local and not home.key_path.exists() and not (home.path / "ledger.db").exists()


def _emit(odometers: "list[Odometer]", as_json: bool) -> None:
    def show_table(console: Console) -> None:
        if not odometers:
            console.print("No budgets. `umbra budget declare NAME --epsilon E --delta D`")
            return
        columns = ["data set", "ε declared", "δ", "spent", "reserved", "left", "open runs"]
        rows = [
            (o.name, o.epsilon, o.delta, o.spent, o.reserved, o.left, o.open_reservations)
            for o in odometers
        ]
        console.print(table("", columns, rows, [1, 2, 3, 4, 5, 6]))

    emit([asdict(odometer) for odometer in odometers], as_json, show_table)
