"""`umbra ledger`: its head, to be kept elsewhere, and its signatures."""

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option, pairs, show_help
from pipeline.home import Home


@click.group(invoke_without_command=True)
@click.pass_context
def ledger(context: click.Context) -> None:
    """Show the ledger's head and sign its rows."""
    show_help(context)


@ledger.command()
@json_option
def head(as_json: bool) -> None:
    """Show the newest row's number and hash: kept elsewhere, it shows a later truncation."""
    from privacy.ledger import Ledger

    opened = Ledger.open(Home.locate().ledger_url)
    facts = {
        "ledger": opened.ledger_id,
        "head": str(opened.head()),
        "public_key": opened.public_key,
    }

    def show(console: Console) -> None:
        signed = {**facts, "public_key": opened.public_key or "none: the rows are not signed"}
        console.print(pairs(opened.where, {k.replace("_", " "): v for k, v in signed.items()}))

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

    def show(console: Console) -> None:
        console.print(f"public key {public_key}")
        console.print(f"The secret is in {path}: keep a copy, without it nothing can be appended.")
        console.print(f"Audit against it: umbra audit ledger --public-key {public_key}")

    emit({"public_key": public_key, "key_file": str(path)}, as_json, show)
