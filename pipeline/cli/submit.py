"""`umbra plan`, `submit` and `resume`: what a spec would cost, running it, and how it ended."""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.output import attack_line, emit, json_option, pairs, table
from pipeline.home import Home, without_password
from pipeline.progress import duration
from pipeline.runs.directory import RunDirectory
from privacy.errors import IntegrityBroken, InvalidRequest, UmbraError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.metrics import PaidMetrics
    from pipeline.plan import Cost, Plan
    from pipeline.progress import Progress
    from pipeline.spec import Workers
    from privacy.budget import Budget, Quote

_FORFEITED_PART = 10  # of the steps, one of so many may be forfeited unasked
_GIGA = 1e9
_PASSED = "passed"
_LABELS = {
    "noise_multiplier": "noise multiplier σ",
    "sampling_probability": "sampling probability q",
    "steps": "steps T",
    "expected_batch": "expected batch",
    "views": "views a record K",
    "clip_norm": "clip norm C",
    "cosines": "cosines a side m",
    "mixture_components": "components a class K",
}


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@json_option
def plan(spec: Path, as_json: bool) -> None:
    """Show what SPEC would cost: noise, steps, ε under RDP, PRV and PLD, size and time.

    Says whether the budget of its data set admits it. Opens no data and changes nothing.
    """
    from pipeline import plan as planning
    from pipeline.spec import load_spec

    home = Home.locate()
    made = planning.plan(planning.with_declared_unit(load_spec(spec), home))
    quoted = planning.budget_quotes(made, home)
    unit = made.spec.privacy.unit
    attack = [curve.to_record(unit) for curve in made.attack()]
    budget = {part: asdict(quote) for part, quote in quoted.items()}
    facts = made.to_dict() | {"attack": attack, "budget": budget}
    emit(facts, as_json, lambda console: _show_plan(console, made, attack, quoted))


def _show_plan(
    console: "Console",
    made: "Plan",
    attack: Sequence[Mapping[str, Any]],
    quoted: "dict[str, Quote]",
) -> None:
    cost, spec = made.cost, made.spec
    facts = {
        "data set": f"{spec.data.name}, N = {spec.data.records}",
        "calibrated by": spec.privacy.calibration.upper(),
        **{_LABELS.get(name, name): _figure(value) for name, value in made.numbers.items()},
        **(_network_costs(cost) if cost.parameters else {}),
    }
    console.print(pairs(f"Plan of {spec.name}", facts))
    bounds = [(name.upper(), bound) for name, bound in made.epsilon.to_dict().items()]
    title = f"ε at δ = {spec.privacy.delta:g}"
    console.print(table(title, ["accountant", "ε at most"], bounds, [1]))
    for curve in attack:
        console.print(attack_line(curve))
    for component in (*made.components, *made.holdout_components):
        console.print(f"charged as {component.name}: {component.mechanism}")
    _show_budget(console, spec.data.name, quoted)
    for note in made.notes:
        console.print(f"Note: {note}")


def _network_costs(cost: "Cost") -> dict[str, str]:
    return {
        "parameters": f"{cost.parameters:,}",
        "views in all": f"{cost.views:,.0f}",
        "training (estimate)": _work(cost.training_flops, cost.training_seconds),
        "sampling (estimate)": _work(cost.sampling_flops, cost.sampling_seconds),
        "gradients": f"{cost.gradient_engine}, {cost.micro_batch} records at a time",
        "worker's memory": f"{cost.worker_bytes / 2**20:,.0f} MiB beside runtimes",
    }


def _show_budget(console: "Console", dataset: str, quoted: "dict[str, Quote]") -> None:
    if not quoted:
        console.print(
            f"{dataset} has no budget yet: umbra budget declare {dataset} --epsilon E --delta D "
            "--private (or --public; --public-holdout where only the holdout is)"
        )
        return
    columns = "part|ε asked|committed|together|left|RDP order|used there|admitted now"
    rows = [
        (
            *(part, q.asked, q.committed, q.together, q.left),
            f"{q.order:g}" if q.fixed else f"{q.order:g} (by this plan)",
            *(f"{100 * q.used:.2f} %", "yes" if q.admitted else "NO"),
        )
        for part, q in quoted.items()
    ]
    console.print(table(f"Budget of {dataset}", columns.split("|"), rows, range(1, 7)))
    for part, quote in quoted.items():
        if quote.in_advance and not quote.admitted:
            console.print(
                f"Note: one plan of all of it, fixed in advance, would be admitted on {part}: "
                "what comes later is held to the order that the first plan fixed."
            )


def _work(flops: float, seconds: float | None) -> str:
    time = "time unknown" if seconds is None else f"about {duration(seconds)} on this machine"
    return f"{flops / _GIGA:,.0f} GFLOP, {time}"


def _figure(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


class _Workers(click.ParamType):
    """A count that a spec would accept, or "auto"."""

    name = "N|auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> "Workers":
        if value == "auto":
            return "auto"
        if str(value).isdecimal() and 1 <= int(value) < 2**63:
            return int(value)
        return self.fail(f"expected a number from 1 or 'auto', found {value!r}", param, ctx)


def _execution_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where and on how many workers a run is executed."""
    options = (
        click.option(
            "--address",
            envvar="RAY_ADDRESS",
            help="Ray cluster to run on (HOST:PORT, ray://HOST:PORT), or with --detach its Jobs "
            "API (http://HOST:8265); without it one is started inside this process.",
        ),
        click.option(
            "--detach", is_flag=True, help="Print the run's id and go on in the background."
        ),
        click.option(
            "--workers",
            type=_Workers(),
            help="Training workers and sampling actors of this start, in place of the spec's.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@_execution_options
@json_option
def submit(
    spec: Path, address: str | None, detach: bool, workers: "Workers | None", as_json: bool
) -> int:
    """Reserve the budget that SPEC needs, train, sample, evaluate and report."""
    from pipeline.runs import engine
    from pipeline.spec import load_spec

    home, requested = Home.locate(), load_spec(spec)
    _require_usable_cluster(address, detach)
    run = engine.submit(requested, home, embedded=address is None, workers=workers)
    _note_doubles(run, home)
    if detach:
        _detach(run, home, address, workers, as_json)
        return 0
    click.echo(f"run {run.run_id}", err=True)
    with _progress(run, as_json) as progress:
        engine.execute(run, home, progress, address, workers)
    return _conclude(run, home, as_json)


def _note_doubles(run: RunDirectory, home: Home) -> None:
    from pipeline.runs.ingest import describe_doubles
    from pipeline.runs.ledger_access import open_budget

    if note := describe_doubles(run, open_budget(home)):
        click.echo(f"note: {note}", err=True)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option(
    "--evaluation",
    metavar="SPEC",
    type=click.Path(path_type=Path),
    help="Evaluate as the corrected SPEC says (section evaluate, and where the holdout lies).",
)
@_execution_options
@click.option("--yes", is_flag=True, help="Go on also where much of the training was forfeited.")
@json_option
def resume(
    run_id: str,
    evaluation: Path | None,
    address: str | None,
    detach: bool,
    workers: "Workers | None",
    yes: bool,
    as_json: bool,
) -> int:
    """Go on with RUN as a new attempt: fresh masks, fresh noise, charged again."""
    home = Home.locate()
    run = home.run(run_id)
    _require_usable_cluster(address, detach)
    _accept_forfeited(run, home, yes, as_json)
    if evaluation is not None:
        from pipeline.runs.preflight import correct_evaluation
        from pipeline.spec import load_spec

        correct_evaluation(run, load_spec(evaluation))
    if detach:
        _detach(run, home, address, workers, as_json)
        return 0
    from pipeline.runs.engine import execute

    with _progress(run, as_json) as progress:
        execute(run, home, progress, address, workers)
    return _conclude(run, home, as_json)


def _accept_forfeited(run: RunDirectory, home: Home, yes: bool, as_json: bool) -> None:
    """Tell how much of the training there will have been, and ask where that is too little."""
    from pipeline.runs import control, ledger_access

    control.require_unfinished(run)
    if run.state().is_done("train") or run.state().reservation_id is None:
        return
    steps = ledger_access.training_steps(run, ledger_access.read_budget(home))
    assert steps is not None  # noqa: S101 - it has reserved
    lost = steps.planned - steps.reachable
    said = f"{steps.reachable} of {steps.planned} planned steps will have been trained"
    if lost:
        said += f": {lost} were charged and lost when the run was interrupted"
    if not as_json:
        click.echo(said, err=True)
    if lost * _FORFEITED_PART <= steps.planned or yes:
        return
    if as_json or not sys.stdin.isatty():
        raise InvalidRequest(
            f"{said}, more than a tenth: add --yes to go on all the same, or give the run up with "
            f"`umbra cancel --give-up {run.run_id}`"
        )
    click.confirm("Go on all the same?", abort=True, err=True)


def _require_usable_cluster(address: str | None, detach: bool) -> None:
    """Refuse a cluster that cannot be used before a budget is reserved for a run on it."""
    from pipeline.cluster.connection import is_jobs_api, require_token

    if is_jobs_api(address) and not detach:
        raise InvalidRequest(
            f"{address} is a cluster's Jobs API, where runs go on by themselves: add --detach, or "
            "give the cluster's own address (HOST:PORT)"
        )
    if address is not None:
        require_token(address)


@contextmanager
def _progress(run: RunDirectory, as_json: bool) -> "Iterator[Progress]":
    """Show progress to the person, and keep it as lines in the run's log."""
    from pipeline.progress import Both, LineProgress, SilentProgress, show_progress

    with run.log_path.open("a") as log:
        yield Both(SilentProgress() if as_json else show_progress(), LineProgress(log))


def _conclude(run: RunDirectory, home: Home, as_json: bool) -> int:
    """Print the summary of a finished run; return the exit code, 4 where its audit fails."""
    from pipeline.runs.ledger_access import open_budget

    summary = summarise(run, home, open_budget(home))
    emit(asdict(summary), as_json, lambda console: show_summary(console, summary))
    if summary.privacy["audit"] == _PASSED:
        return 0
    # Not raised: with --json, an error would print a second document.
    click.echo(f"umbra: run {run.run_id} is finished, but its audit failed", err=True)
    return IntegrityBroken.exit_code


def _detach(
    run: RunDirectory, home: Home, address: str | None, workers: "Workers | None", as_json: bool
) -> None:
    """Start `run` as a job if `address` is a Jobs API, else in a process here; print its id."""
    from pipeline.cluster.connection import is_jobs_api
    from pipeline.runs.control import start_process

    started = {"run_id": run.run_id}
    if address is not None and is_jobs_api(address):
        started["job"] = _submit_job(run, home, address, workers)
    else:
        start_process(run, address, workers)
    emit(started, as_json, lambda console: console.print(run.run_id))


def _submit_job(run: RunDirectory, home: Home, address: str, workers: "Workers | None") -> str:
    from pipeline.runs.control import submit_job

    try:
        return submit_job(run, home, address, workers).submission_id
    except InvalidRequest:
        raise
    except UmbraError as error:
        raise UmbraError(
            f"{error}. Run {run.run_id} keeps what it reserved: go on with `umbra resume "
            f"{run.run_id}`, or give it back with `umbra cancel --give-up {run.run_id}`"
        ) from None


@dataclass(frozen=True)
class Summary:
    """The result of a run on one screen."""

    run_id: str
    # (name, accuracy when trained on synthetic images, the same on real ones if released)
    classifiers: tuple[tuple[str, float, float | None], ...]
    scores: tuple[tuple[str, float], ...]  # metrics on features
    withheld: str  # why there are no metrics, empty where there are
    paid: "PaidMetrics | None"
    privacy: dict[str, Any]  # what was spent, and the audit's verdict
    places: dict[str, str]  # of the report, the data and MLflow


def summarise(run: RunDirectory, home: Home, budget: "Budget") -> Summary:
    """Audit a finished run and collect what its owner wants to know first."""
    from pipeline import metrics

    results = metrics.released(run, budget)
    ceilings = results.get(metrics.CEILING, {})
    return Summary(
        run_id=run.run_id,
        classifiers=tuple(
            (name, result["accuracy"], ceilings[name]["accuracy"] if name in ceilings else None)
            for name, result in results.get(metrics.SYNTHETIC, {}).items()
        ),
        scores=tuple(metrics.likeness(results).items()) if results else (),
        withheld="" if results else _why_withheld(run),
        paid=metrics.paid_metrics(run),
        privacy=_privacy(run, budget),
        places={
            "report": str(run.release / "report.html"),
            "data": str(run.release / "data"),
            "MLflow": shlex.join(
                ["mlflow", "ui", "--backend-store-uri", without_password(home.mlflow_uri)]
            ),
            "export": f"umbra export {run.run_id} DIR",
        },
    )


def _why_withheld(run: RunDirectory) -> str:
    from pipeline.metrics import METRICS

    if (run.internal / METRICS).exists():
        return (
            "the reference is private, or nobody declared otherwise: its metrics stay in the run's "
            "internal folder"
        )
    return "no evaluation was asked for"


def _privacy(run: RunDirectory, budget: "Budget") -> dict[str, Any]:
    from pipeline.audit.ledger import audit_run
    from pipeline.runs.ledger_access import privacy_statement, training_steps

    reserved = run.state().reservation_id
    assert reserved is not None  # noqa: S101 - a finished run has reserved
    statement = privacy_statement(budget, reserved)
    meter = budget.odometer(statement["dataset"])
    audit = audit_run(budget.ledger, run)
    if not audit.ok:
        # Figures from rows that fail it would be read as if they held.
        return {"audit": "FAILED: no figure holds; run `umbra audit` for the findings"}
    bounds = ", ".join(f"{name.upper()} {bound}" for name, bound in statement["epsilon"].items())
    return {
        "spent by this run": f"ε ≤ {bounds} at δ = {statement['delta']:g}, for {statement['unit']}",
        "steps": str(training_steps(run, budget)),
        "budget of the data": (
            f"{meter.name}: ε = {meter.epsilon}, spent {meter.spent}, left {meter.left}"
        ),
        "void": "YES: a seed was given, so the run guarantees no privacy"
        if statement["void"]
        else "no",
        "audit": _PASSED,
    }


def show_summary(console: "Console", summary: Summary) -> None:
    """Print accuracy, scores, what was spent, and where everything is."""
    if summary.classifiers:
        rows = [
            (name, f"{100 * accuracy:.1f} %", "–" if top is None else f"{100 * top:.1f} %")
            for name, accuracy, top in summary.classifiers
        ]
        columns = ["classifier", "trained on synthetic", "trained on real"]
        console.print(table("Accuracy on the real holdout", columns, rows, [1, 2]))
        scores = [(name, f"{value:.4g}") for name, value in summary.scores]
        console.print(table("Likeness to the real holdout", ["metric", "value"], scores, [1]))
    elif summary.paid:
        _show_paid(console, summary.paid)
    elif summary.withheld:
        console.print(f"{summary.withheld}\n")
    console.print(pairs("Privacy", summary.privacy))
    console.print(pairs("Where", summary.places))


def _show_paid(console: "Console", paid: "PaidMetrics") -> None:
    rows = [
        (name, f"{100 * of.value:.1f} %", f"{100 * of.low:.1f} to {100 * of.high:.1f} %")
        for name, of in paid.classifiers.items()
    ]
    columns = ["classifier", "accuracy, noisy", f"{100 * paid.confidence:.0f} % interval"]
    title = f"Accuracy on the private holdout, released for ε = {paid.epsilon}"
    console.print(table(title, columns, rows, [1, 2]))
