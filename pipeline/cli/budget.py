"""`umbra budget`: declare, show and close budgets; `umbra ledger`: its head and its signatures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.output import (
    WHAT_HOLDS,
    attack_line,
    emit,
    json_option,
    pairs,
    printable,
    show_help,
    table,
)
from pipeline.home import Home
from privacy.errors import InvalidRequest

if TYPE_CHECKING:
    from rich.console import Console

    from privacy.budget import Budget, Odometer
    from privacy.ledger import Row
    from privacy.ledger.records import Facts


@click.group(invoke_without_command=True)
@click.pass_context
def budget(context: click.Context) -> None:
    """Declare, show and close the budgets of data sets."""
    show_help(context)


@budget.command()
@click.argument("name")
@click.option("--epsilon", type=float, required=True, help="ε over all runs on the data set.")
@click.option("--delta", type=float, required=True, help="The one δ of the data set, below 1/N.")
@click.option(
    "--order",
    type=float,
    help="The RDP order on which all plans are admitted, for who knows what is to come; without it "
    "the first plan fixes the order that suits it best.",
)
@click.option("--unit", help="What is protected: image, patient … (image)")
@click.option("--records-per-unit", type=int, help="The most records that one unit owns (1).")
@click.option("--public/--private", default=None, help="Whether the images may be shown (private).")
@click.option(
    "--public-holdout/--private-holdout",
    default=None,
    help="Whether those of the holdout may be (as the others).",
)
@json_option
def declare(
    name: str, epsilon: float, delta: float, order: float | None, as_json: bool, **said: Any
) -> None:
    """Give the data set NAME its budget and say what it is, once and for ever.

    No spec can change what is declared here.
    """
    # The one command that may begin a ledger.
    budgets = _opened(Home.locate().ensure())
    facts = _facts(
        budgets, name, {what: value for what, value in said.items() if value is not None}
    )
    _emit([budgets.declare(name, epsilon, delta, facts, order=order)], as_json)


def _facts(budgets: "Budget", name: str, said: dict[str, Any]) -> "Facts | None":
    """Return the facts of a data set: those said, and known ones or defaults for the others.

    Raises InvalidRequest where an older version declared it, and some of them are said: nobody but
    an officer knows the others.
    """
    from privacy.ledger.records import Facts

    known = next((each for each in budgets.show() if each.name == name), None)
    if known is not None and known.facts is None:
        missing = {"unit", "records_per_unit", "public"} - said.keys()
        if said and missing:
            options = ", ".join(f"--{each.replace('_', '-')}" for each in sorted(missing))
            raise InvalidRequest(f"{name!r} was declared by an older version: say {options}, too.")
        if not said:
            return None
    else:
        said = (asdict(known.facts) if known is not None and known.facts else {}) | said
    return Facts(**({"public_holdout": said.get("public", False)} | said))


@budget.command()
@click.option("--power", is_flag=True, help="And what an attacker could do at most; takes seconds.")
@json_option
def show(power: bool, as_json: bool) -> None:
    """Show every data set's budget: spent, reserved and left; changes nothing."""
    home = Home.locate()
    budgets = None if _is_new(home) else _read(home)
    odometers = list(budgets.show()) if budgets else []
    attack = {o.name: budgets.attack(o.name) for o in odometers if power and budgets}
    _emit(odometers, as_json, attack)


@budget.command()
@click.argument("name")
@json_option
def history(name: str, as_json: bool) -> None:
    """Show everything that was ever done with the budget of NAME: when, by whom, what."""
    rows = list(_read(Home.locate()).history(name))

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


def _read(home: Home) -> "Budget":
    from pipeline.runs.ledger_access import read_budget

    return read_budget(home)


def _existing() -> "Budget":
    """Return the budgets for writing, of a ledger that is there."""
    home = Home.locate()
    # Opened for reading first, which begins none: a misspelt home must not get a ledger.
    _read(home).ledger.close()
    return _opened(home)


def _opened(home: Home) -> "Budget":
    from pipeline.runs.ledger_access import open_budget

    budgets = open_budget(home)
    # Its figures are printed, so they have to hold.
    budgets.ledger.require_sound()
    return budgets


def _is_new(home: Home) -> bool:
    """Return whether the home has neither a ledger nor a key: nothing was ever declared here."""
    local = home.ledger_url.startswith("sqlite:")
    return local and not home.key_path.exists() and not (home.path / "ledger.db").exists()


def _emit(
    odometers: "list[Odometer]",
    as_json: bool,
    attack: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    attack = attack or {}

    def show_table(console: "Console") -> None:
        if not odometers:
            console.print(
                "No budgets. `umbra budget declare NAME --epsilon E --delta D --private` (or "
                "--public; --public-holdout where only the holdout is)"
            )
            return
        columns = (
            "data set|ε declared|δ|spent|reserved|left|used|RDP order|open runs|state|what it is"
        )
        rows = [
            (
                *(o.name, o.epsilon, o.delta, o.spent, o.reserved, o.left, f"{100 * o.used:.2f} %"),
                ", ".join(f"{order:g}" for order in o.orders.values()) or None,
                *(o.open_reservations, "closed" if o.closed else "open"),
                o.facts or "not declared: no run goes on it",
            )
            for o in odometers
        ]
        console.print(table("", columns.split("|"), rows, range(1, 9)))
        console.print(WHAT_HOLDS)
        for name, curves in attack.items():
            for curve in curves:
                console.print(f"{name}: {attack_line(curve)}")

    power = {name: {"attack": list(curves)} for name, curves in attack.items()}
    emit([asdict(o) | power.get(o.name, {}) for o in odometers], as_json, show_table)


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

    home = Home.locate()
    opened = Ledger.open(home.ledger_url, witness=home.witness_path)
    known = {"ledger": opened.ledger_id, "head": str(opened.head())}
    key = opened.public_key
    signed = {"public key": key or "none: the rows are not signed"}
    shown = pairs(opened.where, known | signed)
    emit({**known, "public_key": key}, as_json, lambda console: console.print(shown))


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


_Body = Mapping[str, Any]


def describe_row(row: "Row") -> str:
    """Describe a row in one line for a person; an unknown kind is named as it is."""
    describe = _DESCRIPTIONS.get(row.kind)
    return row.kind if describe is None else describe(row.content)


def _plan(body: _Body) -> str:
    parts = (f"{p['name']} × {p['mechanism']['steps']}" for p in body["plan"])
    void = ", VOID (seeded)" if body["void"] else ""
    return f"reserved for run {body['run']}: {', '.join(parts)}{void}"


def _charge(body: _Body) -> str:
    steps = f"{body['steps']} step{'s' if body['steps'] != 1 else ''}"
    return f"charged {steps} of {body['component']}, attempt {body['attempt']}"


def _settle(body: _Body) -> str:
    charged = ", ".join(f"{name} × {steps}" for name, steps in body["charged"].items())
    return f"settled: {charged} charged, the rest given back"


def _order(body: _Body) -> str:
    part = "every part" if body["partition"] is None else body["partition"]
    return f"{part}: admitted on the RDP order {body['order']:g} alone ({body['reason']})"


# By `privacy.ledger.Kind`, spelt out: the command line starts without importing the database.
_DESCRIPTIONS: dict[str, Callable[[_Body], str]] = {
    "declare": lambda body: f"declared ε = {body['epsilon']:g} at δ = {body['delta']:g}",
    "bind": lambda body: f"bound to content of {body['records']} records",
    "partition": lambda body: f"{body['partition']}: bound to {body['records']} records",
    "overlap": lambda body: f"accepted that it shares records with {body['other']}",
    "reserve": _plan,
    "attempt": lambda body: f"attempt {body['attempt']} began",
    "charge": _charge,
    "settle": _settle,
    "export": lambda body: f"exported from run {body['run']}: {body['description']}",
    "close": lambda body: "closed: nothing more is admitted",
    "order": _order,
    "facts": lambda body: (
        "declared what it is: {unit}, up to {records_per_unit} records of one, "
        "public: {public}, holdout public: {public_holdout}".format(**body)
    ),
    "content": lambda body: f"all {body['records']} records of a content are known",
    "holdout": lambda body: f"run {body['run']} opened a holdout of {body['records']} records",
}
