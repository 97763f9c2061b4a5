"""`umbra budget`: declare what a data set may spend, see who spent what, and close it."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option, printable, show_help, table
from pipeline.home import Home

if TYPE_CHECKING:
    from privacy.budget import Budget, Odometer


@click.group(invoke_without_command=True)
@click.pass_context
def budget(context: click.Context) -> None:
    """Declare, show and close the budgets of data sets."""
    show_help(context)


@budget.command()
@click.argument("name")
@click.option("--epsilon", type=float, required=True, help="ε over all runs on the data set.")
@click.option("--delta", type=float, required=True, help="The one δ of the data set, below 1/N.")
@json_option
def declare(name: str, epsilon: float, delta: float, as_json: bool) -> None:
    """Give the data set NAME its budget, once and for ever."""
    from pipeline.runs.ledger_access import open_budget

    budgets = open_budget(Home.locate().ensure())
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


@budget.command()
@click.argument("name")
@json_option
def history(name: str, as_json: bool) -> None:
    """Show everything that was ever done with the budget of NAME: when, by whom, what."""
    from pipeline.runs.ledger_access import describe_row
    from privacy.budget import Budget
    from privacy.ledger import Ledger

    rows = list(Budget(Ledger.open(Home.locate().ledger_url)).history(name))

    def show_table(console: Console) -> None:
        cells = [
            (r.seq, r.created_at[:19], printable(r.author or "–"), describe_row(r)) for r in rows
        ]
        console.print(table(f"History of {name}", ["row", "time (UTC)", "who", "what"], cells, [0]))

    emit([row.to_record() for row in rows], as_json, show_table)


@budget.command()
@click.argument("name")
@json_option
def close(name: str, as_json: bool) -> None:
    """Admit nothing more for the data set NAME, for ever; runs that have reserved may finish."""
    _emit([_existing().close(name)], as_json)


@budget.command("accept-overlap")
@click.argument("name")
@click.argument("other")
@json_option
def accept_overlap(name: str, other: str, as_json: bool) -> None:
    """Accept, as the officer in charge, that NAME shares records with OTHER.

    For those records the two budgets add up, and every audit says so.
    """
    budgets = _existing()
    budgets.accept_overlap(name, other)
    _emit([budgets.odometer(name), budgets.odometer(other)], as_json)


def _existing() -> "Budget":
    """Return the budgets of a ledger that is there: a misspelt home must not get a new one."""
    from pipeline.runs.ledger_access import open_budget
    from privacy.ledger import Ledger

    home = Home.locate()
    Ledger.open(home.ledger_url).close()
    return open_budget(home)


def _is_new(home: Home) -> bool:
    """Return whether the home has neither a ledger nor a key: nothing was ever declared here."""
    local = home.ledger_url.startswith("sqlite:")
    return local and not home.key_path.exists() and not (home.path / "ledger.db").exists()


def _emit(odometers: "list[Odometer]", as_json: bool) -> None:
    def show_table(console: Console) -> None:
        if not odometers:
            console.print("No budgets. `umbra budget declare NAME --epsilon E --delta D`")
            return
        columns = ["data set", "ε declared", "δ", "spent", "reserved", "left", "open runs", "state"]
        rows = [
            (
                o.name,
                o.epsilon,
                o.delta,
                o.spent,
                o.reserved,
                o.left,
                o.open_reservations,
                "closed" if o.closed else "open",
            )
            for o in odometers
        ]
        console.print(table("", columns, rows, [1, 2, 3, 4, 5, 6]))

    emit([asdict(odometer) for odometer in odometers], as_json, show_table)
