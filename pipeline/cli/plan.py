"""`umbra plan`: what a spec would cost, before anything is done."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.output import emit, json_option, pairs, table
from pipeline.home import Home
from pipeline.progress import duration

if TYPE_CHECKING:
    from rich.console import Console

    from privacy.budget import Quote

_GIGA = 1e9
_LABELS = {
    "noise_multiplier": "noise multiplier σ",
    "sampling_probability": "sampling probability q",
    "steps": "steps T",
    "expected_batch": "expected batch",
    "views": "views a record K",
    "clip_norm": "clip norm C",
}


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@json_option
def plan(spec: Path, as_json: bool) -> None:
    """Show what SPEC would cost: noise, steps, ε under RDP, PRV and PLD, size and time.

    Says whether the budget of its data set admits it. Opens no data and changes nothing.
    """
    from pipeline.plan.plan import budget_quotes
    from pipeline.plan.plan import plan as make_plan
    from pipeline.spec import load_spec

    made = make_plan(load_spec(spec))
    quoted = budget_quotes(made, Home.locate())
    facts = made.to_dict() | {"budget": {part: asdict(quote) for part, quote in quoted.items()}}

    def show(console: "Console") -> None:
        cost, asked = made.cost, made.spec
        console.print(
            pairs(
                f"Plan of {asked.name}",
                {
                    "data set": f"{asked.data.name}, N = {asked.data.records}",
                    "calibrated by": asked.privacy.calibration.upper(),
                    **{_LABELS.get(n, n): _shown(value) for n, value in made.numbers.items()},
                    "parameters": f"{cost.parameters:,}",
                    "views in all": f"{cost.views:,.0f}",
                    "training (estimate)": _work(cost.training_flops, cost.training_seconds),
                    "sampling (estimate)": _work(cost.sampling_flops, cost.sampling_seconds),
                    "gradients": f"{cost.gradient_engine}, {cost.micro_batch} records at a time",
                    "worker's memory": f"{cost.worker_bytes / 2**20:,.0f} MiB beside runtimes",
                },
            )
        )
        rows = [(name.upper(), bound) for name, bound in facts["epsilon"].items()]
        title = f"ε at δ = {asked.privacy.delta:g}"
        console.print(table(title, ["accountant", "ε at most"], rows, [1]))
        for component in (*made.components, *made.holdout_components):
            console.print(f"charged as {component.name}: {component.mechanism}")
        _show_budget(console, asked.data.name, quoted)
        for note in made.notes:
            console.print(f"Note: {note}")

    emit(facts, as_json, show)


def _show_budget(console: "Console", dataset: str, quoted: "dict[str, Quote]") -> None:
    if not quoted:
        console.print(
            f"{dataset} has no budget yet: umbra budget declare {dataset} --epsilon E --delta D"
        )
        return
    columns = ["part", "ε asked", "committed", "together", "left", "admitted now"]
    rows = [
        (part, q.asked, q.committed, q.together, q.left, "yes" if q.admitted else "NO")
        for part, q in quoted.items()
    ]
    console.print(table(f"Budget of {dataset}", columns, rows, range(1, 5)))


def _work(flops: float, seconds: float | None) -> str:
    time = "time unknown" if seconds is None else f"about {duration(seconds)} on this machine"
    return f"{flops / _GIGA:,.0f} GFLOP, {time}"


def _shown(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
