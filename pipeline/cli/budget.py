"""`umbra budget`: declare, show and close budgets; `umbra ledger`: its head and its signatures."""

from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING

import click

from pipeline.cli.output import emit, json_option, pairs, printable, show_help, table
from pipeline.home import Home

if TYPE_CHECKING:
    from rich.console import Console

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
    new = _is_new(home)
    _emit([] if new else list(Budget(Ledger.open(home.ledger_url)).show()), as_json)


@budget.command()
@click.argument("name")
@json_option
def history(name: str, as_json: bool) -> None:
    """Show everything that was ever done with the budget of NAME: when, by whom, what."""
    from pipeline.runs.ledger_access import describe_row
    from privacy.budget import Budget
    from privacy.ledger import Ledger

    rows = list(Budget(Ledger.open(Home.locate().ledger_url)).history(name))

    def show_table(console: "Console") -> None:
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
    def show_table(console: "Console") -> None:
        if not odometers:
            console.print("No budgets. `umbra budget declare NAME --epsilon E --delta D`")
            return
        columns = ["data set", "ε declared", "δ", "spent", "reserved", "left", "open runs", "state"]
        numbers = attrgetter("epsilon", "delta", "spent", "reserved", "left", "open_reservations")
        rows = [(o.name, *numbers(o), "closed" if o.closed else "open") for o in odometers]
        console.print(table("", columns, rows, [1, 2, 3, 4, 5, 6]))

    emit([asdict(odometer) for odometer in odometers], as_json, show_table)


@click.group(invoke_without_command=True)
@click.pass_context
def ledger(context: click.Context) -> None:
    """Show the ledger's head and sign its rows."""
    show_help(context)


@ledger.command()
@json_option
def head(as_json: bool) -> None:
    """Show the newest row's number and hash: a copy kept elsewhere reveals a later truncation."""
    from privacy.ledger import Ledger

    opened = Ledger.open(Home.locate().ledger_url)
    known = {"ledger": opened.ledger_id, "head": str(opened.head())}
    facts = {**known, "public_key": opened.public_key}

    def show(console: "Console") -> None:
        signed = {"public key": opened.public_key or "none: the rows are not signed"}
        console.print(pairs(opened.where, known | signed))

    emit(facts, as_json, show)


@ledger.command()
@json_option
def sign(as_json: bool) -> None:
    """Sign every row from now on with an Ed25519 key of this home, or with a new one.

    The key is drawn where there is none, and replaced where there is one: the old key signs the
    new one in. Give the public key that is printed to whoever audits.
    """
    from pipeline.runs.ledger_access import start_signing

    public_key, path = start_signing(Home.locate())

    def show(console: "Console") -> None:
        console.print(f"public key {public_key}")
        console.print(f"The secret is in {path}: keep a copy, without it nothing can be appended.")
        console.print(f"Audit against it: umbra audit ledger --public-key {public_key}")

    emit({"public_key": public_key, "key_file": str(path)}, as_json, show)
