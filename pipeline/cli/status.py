"""`umbra status`: where a run stands."""

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option, pairs, printable
from pipeline.home import Home
from pipeline.progress import duration
from pipeline.runs.state import RunState
from pipeline.runs.status import run_status

_GO_ON_OR_GIVE_UP = (
    "go on with `umbra resume {run}`, or give what was never charged back with "
    "`umbra cancel --give-up {run}`"
)
_ADVICE = {
    "created": "its budget is reserved; begin it with `umbra resume {run}`",
    "queued": "it begins by itself; stop it with `umbra cancel {run}`",
    "interrupted": f"its process died; {_GO_ON_OR_GIVE_UP}",
    "silent": f"if it is gone for good, {_GO_ON_OR_GIVE_UP}; only the newest start can charge",
    "failed": "go on with `umbra resume {run}` when the reason is mended",
    "cancelled": "go on with `umbra resume {run}`",
    "running": "follow it with `umbra logs {run}`, stop it with `umbra cancel {run}`",
    "done": "take the images with `umbra export {run} DIR`",
}


@click.command()
@click.argument("run_id", metavar="RUN")
@json_option
def status(run_id: str, as_json: bool) -> None:
    """Say where RUN stands, why, and what can be done."""
    run = Home.locate().run(run_id)
    here = run_status(run)
    state, now = run.state(), here.status
    advice = _ADVICE[now].format(run=run.run_id)
    done = {record.name: duration(record.seconds) for record in state.stages}
    facts = {**state.model_dump(mode="json"), "status": now, "reason": here.reason}
    facts |= {"where": _where(state), "advice": advice}

    reason = printable(here.reason or state.message)

    def show(console: Console) -> None:
        console.print(
            pairs(
                f"{run.run_id}: {now}",
                {
                    "stages done": ", ".join(f"{n} ({t})" for n, t in done.items()) or "none",
                    **({"stage": state.stage} if state.stage else {}),
                    "attempts": state.attempt,
                    **({"where": where} if (where := _where(state)) else {}),
                    **({"reason" if now != "done" else "note": reason} if reason else {}),
                    "next": advice,
                    "folder": str(run.path),
                },
            )
        )

    emit(facts, as_json, show)


def _where(state: RunState) -> str:
    """Return who works on the run, or is to, in words."""
    who = [str(state.job)] if state.job and state.status in {"created", "running"} else []
    if state.process:
        host = f" on {state.process.host}" if state.process.host else ""
        who.append(f"process {state.process.pid}{host}")
    return ", ".join(who)
